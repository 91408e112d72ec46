"""Makes keras_cases.npz: a part of the combinations of test_keras_parity.py with Keras' own numbers, for machines without Keras.

    KERAS_BACKEND=torch python -m tests.interop.make_keras_cases

A case is its layer's configuration as Keras serialises it, inputs in float32, and outputs and states in float64.
"""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import torch

from .test_keras_parity import CASES, arrays, compute, keras_layer

PATH = Path(__file__).parent / "keras_cases.npz"


def main() -> None:
    chosen = [case for case in CASES if case.filters < 32][::11]
    record: dict[str, np.ndarray] = {}
    for number, case in enumerate(chosen):
        given = arrays(case)
        layer = keras_layer(keras.layers, case, "float64")
        outputs = compute(layer, given, torch.float64)
        config = keras.layers.serialize(layer)
        config["config"]["name"] = str(case)
        about = {"keras": keras.__version__, "layer": config}
        record[f"{number}.about"] = np.array(json.dumps(about))
        record[f"{number}.x"] = given.x
        if given.mask is not None:
            record[f"{number}.mask"] = given.mask
        for name, values in (("state", given.state or []), ("weights", given.weights), ("out", outputs)):
            for place, value in enumerate(values):
                record[f"{number}.{name}.{place}"] = np.asarray(value)
    np.savez_compressed(PATH, **record)  # type: ignore[arg-type]
    print(f"wrote {PATH}: {len(chosen)} cases, {PATH.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
