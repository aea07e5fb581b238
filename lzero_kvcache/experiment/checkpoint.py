import torch


def check_checkpoint(path: str) -> None:
    """
    Overview:
        Make sure that a checkpoint holds tensors, numbers and texts alone. LightZero's entries read it by
        ``torch.load``, which before PyTorch 2.6 executes whatever a file from elsewhere brings along.
    Arguments:
        - path (:obj:`str`): The file.
    Raises:
        - ValueError: If it is no such file. Nothing of it is executed.
    """
    try:
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # PyTorch, its own unpickler and zip archives have an exception each; the first line says what is wrong.
        reason = (str(error).splitlines() or [''])[0]
        raise ValueError(
            f'{path} is not loaded, because it is no checkpoint of weights alone ({type(error).__name__}: {reason})'
        ) from error
