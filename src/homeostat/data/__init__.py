"""Normalization of tables: the same two verbs, without torch.

>>> import numpy as np
>>> table = np.array([[1.0, 5.0], [3.0, 9.0], [10.0, 0.0], [30.0, 4.0]])
>>> normalize(table, "cell gene -> lab[cell] gene", lab=["a", "a", "b", "b"], eps=0.0)
array([[-1., -1.],
       [ 1.,  1.],
       [-1., -1.],
       [ 1.,  1.]])
"""

from __future__ import annotations

from homeostat.reading import Reading as Reading
from homeostat.reading import measure as measure
from homeostat.reading import normalize as normalize

__all__ = ["Reading", "measure", "normalize"]
