from importlib import import_module

from .config_file import Experiment


def import_environment(experiment: Experiment) -> None:
    """
    Overview:
        Import the modules of an experiment's environment, as DI-engine will.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    Raises:
        - ValueError: If one needs a package that is not installed, with the package's name.
    """
    for name in experiment.create_config.env.get('import_names', []):
        try:
            import_module(name)
        except ImportError as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            raise ValueError(
                f'create_config.env.import_names has {name!r}, which cannot be imported: {error}'
                + (f'; the environment needs the package that holds {missing!r}' if missing else '')
            ) from error
