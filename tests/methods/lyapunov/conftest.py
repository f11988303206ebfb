"""Everything in double precision, as in the tests of dynamics."""

from tests.methods.dynamics.conftest import _float64 as _float64
