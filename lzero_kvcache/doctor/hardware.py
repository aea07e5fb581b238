import shutil

from .finding import OK, PROBLEM, WARNING, Finding


def gpu() -> list[Finding]:
    """
    Overview:
        Which GPU will LightZero use? None is no fault.
    """
    try:
        import torch
    except ImportError as error:
        return [Finding('GPU', PROBLEM, f'PyTorch cannot be imported: {error}')]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return [Finding(
            'GPU', OK, f'{properties.name}, {properties.total_memory / 2 ** 30:.0f} GiB, CUDA {torch.version.cuda}, '
            f'{torch.cuda.device_count()} in all'
        )]
    if shutil.which('nvidia-smi'):
        return [Finding(
            'GPU', WARNING, f'nvidia-smi is there, but PyTorch {torch.__version__} finds no GPU: the CPU is used',
            "nvidia-smi; then the command that https://pytorch.org/get-started/locally gives for the driver's CUDA"
        )]
    return [Finding('GPU', OK, f'none, the CPU is used (threads: {torch.get_num_threads()})')]
