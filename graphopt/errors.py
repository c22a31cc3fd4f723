"""The one family of errors that graphopt raises on purpose.

Each message says what is wrong, where (file, graph, node, tensor or option) and, where it helps, what to do about it.
The command line prints the message alone and exits with `exit_code`; a traceback is shown only with `-v`.
"""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Something went wrong that the user can act on. Catch this to catch everything graphopt raises on purpose."""

    exit_code: ClassVar[int] = 1


class InvalidModelError(GraphoptError):
    """The model, or a file that belongs to it, is not valid ONNX. The message names the place."""


class UnsupportedModelError(GraphoptError):
    """The model is valid, but holds something that graphopt cannot keep without losing it."""


class VerificationError(GraphoptError):
    """A rewrite left a graph that is not valid: a defect of the pass that the message names."""


class PassError(GraphoptError):
    """A pass failed. The message names the pass and the file that reproduces the failure."""


class PipelineError(GraphoptError):
    """The text of a pipeline cannot be read, or names a pass or an option that does not exist."""

    exit_code: ClassVar[int] = 2


class OptionError(GraphoptError):
    """An option has a value that it cannot have. The message names the option."""

    exit_code: ClassVar[int] = 2


class NotAvailableError(GraphoptError):
    """A documented feature that this version does not have yet. The message says which."""


class EmitError(GraphoptError):
    """The output cannot be written. Nothing was left behind."""


class RuntimeFailureError(GraphoptError):
    """onnxruntime cannot load or run the model. The message holds its reason."""


class DataError(GraphoptError):
    """Samples are missing, cannot be read, or do not fit the model or the metric. The message names the option."""


class ProfileError(GraphoptError):
    """A device profile cannot be read, or is none."""


class TargetNotMetError(GraphoptError):
    """The gate or the budget cannot be met; the message says how far it came. Nothing is written."""

    exit_code: ClassVar[int] = 3
