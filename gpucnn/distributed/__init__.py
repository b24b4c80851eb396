"""Training on many devices: communicators, gradients summed while backward runs, batch norm of the whole batch.

``gpucnn.nn.fit(…, communicator=MPI())`` trains one model in several processes, each of which takes its share of every
batch. `conv2d` convolves images that are spread over processes themselves.
"""

from gpucnn.distributed.communicator import Communicator
from gpucnn.distributed.gradients import GradientReducer, volume
from gpucnn.distributed.mpi import MPI
from gpucnn.distributed.nccl import NCCL
from gpucnn.distributed.normalization import SyncBatchNorm, synchronized
from gpucnn.distributed.splitting import conv2d, conv2d_backward
from gpucnn.distributed.threads import local

__all__ = [
    "MPI", "NCCL", "Communicator", "GradientReducer", "SyncBatchNorm", "conv2d", "conv2d_backward", "local",
    "synchronized", "volume",
]  # fmt: skip
