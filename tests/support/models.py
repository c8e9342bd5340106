"""Models that are registered for the time of a test."""

import contextlib

import fastsnn_jax as fs
from fastsnn_jax import architectures
from fastsnn_jax.architectures.resnet import resnet


@contextlib.contextmanager
def registered(name, table, **settings):
  """As `register`; afterwards the name stands for nothing again."""
  fs.register_model(name, table, **settings)
  try:
    yield
  finally:
    del architectures._MODELS[name]


def three_rows(classes, head=None):
  """The layers of a network whose compilation is next to nothing."""
  pooled = fs.Chain((fs.GlobalAveragePool(), fs.Dense(classes, norm=False)))
  return (
    fs.Layer('stem', fs.Conv(3)),
    fs.Layer('body', fs.Conv(3), 'stem'),  # a name alone does too
    fs.Layer('head', head or pooled, ('body',)),
  )


def tiny_resnet(bits, classes):
  """The table of a network that compiles in a second, not in ten."""
  return resnet(
    classes,
    stem=8,
    channels=(8,),
    blocks=(1,),
    ends=fs.EightBit(),
    middle=None if bits == 32 else fs.Apot(bits),
    stem_stride=2,
  )


# How a config file makes it known; it finds this folder on PYTHONPATH.
TINY_RESNET = """
import fastsnn_jax as fs
from support.models import tiny_resnet

fs.register_model('tiny_resnet', tiny_resnet)
"""
