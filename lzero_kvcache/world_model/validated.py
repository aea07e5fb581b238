class ValidatedInference:
    pass
