"""Where calibration and evaluation samples come from.

Public names:

* `open_samples(source, model, normalize=, limit=, default_limit=, seed=, option=)`: everything that `-d` takes (files,
  folders, functions, arrays, iterables, readers) as `Samples`. Pass what the user asked for as `limit`
  (`--calibration-samples`), the default of 256 as `default_limit`: only the first warns where there are fewer.
* `Samples`: `batches(size)`, `labels()`, `labelled`, `len`, `digest`, `warnings`, `indices()`, `subset(indices)`;
  re-iterable and streaming. `warnings` may grow while samples are read: read it at the end of a run. A plan is replayed by
  `open_samples(...)` without a limit, a comparison of digests, and `subset` of the plan's indices.
* `Batch`: `feeds`, `count`, `labels`. A model that leaves its batch open but fails on more than one sample (a constant
  Reshape inside) takes `batches(1)`.
* `hold_out(samples, seed=)`: (calibration, held out).
* `Normalization`, `parse_normalize(text or mapping)`, `PRESETS`: `--normalize`.

Errors are `DataError`, for what cannot be read as a normalization `OptionError`, without Pillow `NotAvailableError`.
"""

from graphopt.data.normalization import PRESETS, Normalization, parse_normalize
from graphopt.data.opening import open_samples
from graphopt.data.samples import Batch, Samples, hold_out

__all__ = ["PRESETS", "Batch", "Normalization", "Samples", "hold_out", "open_samples", "parse_normalize"]
