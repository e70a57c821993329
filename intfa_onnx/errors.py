"""The three exception classes of the package; the CLI turns each into one line and exit code 2."""


class IntfaError(Exception):
    """Base class. The message says what was found, what is supported, and the remedy."""


class ModelError(IntfaError):
    """A model file cannot be read, is not valid ONNX, or cannot be written."""


class UnsupportedError(IntfaError):
    """A valid request outside of what this version, build or host runtime supports."""
