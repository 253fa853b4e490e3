"""Every error that mlpdeploy raises on purpose, and the exit code that each one gives the command line.

    MlpdeployError
    ├── GateFailed          1   the work was done and the result is not good enough
    ├── InputError          2   the user gave something that cannot be used
    │   ├── CheckpointError     a checkpoint is missing, broken, hostile or of another network
    │   ├── NetworkError        the network cannot be traced, or holds what mlpdeploy does not support
    │   └── ArtifactError       an artifact is missing, altered, or of another version or GPU
    ├── BuildError          2   a backend refused the emitted network
    └── MachineLacks        3   this machine has no such library, GPU or network access

A message says what happened, where, and what to do next, in one line; details follow on lines of their own.
"""


class MlpdeployError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with."""

    exit_code = 2


class GateFailed(MlpdeployError):
    """A budget was missed: the work is done, its result is not good enough."""

    exit_code = 1


class InputError(MlpdeployError):
    """A name, option, file or folder that cannot be used as given."""


class CheckpointError(InputError):
    """A checkpoint that is missing, truncated, hostile, or does not fit the network."""


class NetworkError(InputError):
    """A network that cannot be traced or holds an operation that no backend takes."""


class ArtifactError(InputError):
    """An artifact that is missing, altered since it was built, or made for another version or GPU."""


class BuildError(MlpdeployError):
    """A backend refused the emitted network, or its engine would not be what was asked for."""


class TunedElsewhere(UserWarning):
    """An engine that was tuned on another GPU than the one that it runs on, of the same compute capability."""


class MachineLacks(MlpdeployError):
    """This machine lacks a library, a GPU, or network access that the request needs."""

    exit_code = 3
