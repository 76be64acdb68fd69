"""`transfusion` on a stream in which some rows are bad: `poisoned.py nan|spike ROW,ROW train …`.

`nan` puts a NaN into an image. `spike` gives texts large loss weights that cancel out: finite, and far too large.
"""

import sys

import numpy as np

from transfusion_jax.cli import main
from transfusion_jax.data.document_rows import DocumentRows

KIND, ROWS = sys.argv[1], [int(row) for row in sys.argv[2].split(",")]
whole = DocumentRows.__getitem__


def poisoned(self, row):
    batch = whole(self, row)
    if row in ROWS and KIND == "nan":
        batch.media["images"].patches[0, 0] = np.nan
    if row in ROWS and KIND == "spike":
        batch.token_weight[::2] *= 1000
        batch.token_weight[1::2] *= -1000
    return batch


DocumentRows.__getitem__ = poisoned

if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
