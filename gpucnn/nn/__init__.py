"""Layers with forward and backward, containers, losses, optimisers and training: networks on top of the operations."""

from gpucnn.nn import initialization as init
from gpucnn.nn import models
from gpucnn.nn.activation import *
from gpucnn.nn.checkpoints import *
from gpucnn.nn.containers import *
from gpucnn.nn.convert import *
from gpucnn.nn.convolution import *
from gpucnn.nn.fusing import *
from gpucnn.nn.history import *
from gpucnn.nn.keeping import *
from gpucnn.nn.linear import *
from gpucnn.nn.losses import *
from gpucnn.nn.module import *
from gpucnn.nn.normalization import *
from gpucnn.nn.optimizers import *
from gpucnn.nn.pooling import *
from gpucnn.nn.precision import *
from gpucnn.nn.pytorch_files import *
from gpucnn.nn.scaling import *
from gpucnn.nn.schedules import *
from gpucnn.nn.sliding import *
from gpucnn.nn.summary import *
from gpucnn.nn.tiling import *
from gpucnn.nn.training import *
from gpucnn.nn.transfer import *

# each module lists its names, once
__all__ = ["init", "models"]
__all__ += sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
