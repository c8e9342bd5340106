"""Derivatives of orders above the first, for rules that are written by hand."""

import jax


def every_order(loss, x, clip, direction):
  """Second derivatives in both modes, and a third one along a line."""

  def along(s):
    return loss(x + s * direction, clip * (1 + s))

  return (
    jax.hessian(loss, (0, 1))(x, clip),
    jax.jacrev(jax.jacfwd(loss, (0, 1)), (0, 1))(x, clip),
    jax.grad(jax.grad(jax.grad(along)))(0.0),
  )
