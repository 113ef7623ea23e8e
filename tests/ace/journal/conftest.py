"""The noise shards of the tests of training."""

from tests.ace.pretrain.conftest import noise_shards

__all__ = ["noise_shards"]
