"""What suppression costs beside the quantised forward pass in front of it.

python -m benchmarks.detection [--model yolov2_tiny] [--batch 16] [--size 416]
"""

import argparse
import functools

import jax
import jax.numpy as jnp

import fastsnn_jax as fs
from benchmarks.timing import compare, show, table
from fastsnn_jax.tasks.detection import task as detection


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  models = [name for name in fs.models() if 'yolo' in name]
  parser.add_argument('--model', default='yolov2_tiny', choices=models)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--size', type=int, default=416)
  parser.add_argument('--bits', type=int, default=4)
  args = parser.parse_args()
  network = fs.build(args.model, args.bits, 20)
  shape = (args.batch, args.size, args.size, 3)
  images = jax.random.normal(jax.random.key(1), shape)
  variables = network.init(jax.random.key(0), images)
  forward = jax.jit(lambda tree, images: network.apply(tree, images)[0])
  # Wide enough that nearly every box is over the least score, the worst case.
  output = 2 * jax.random.normal(
    jax.random.key(2), jax.eval_shape(forward, variables, images).shape
  )
  boxes = jnp.size(output[0, ..., 0]) * len(network.anchors)
  alternatives = {'forward pass': (forward, variables, images)}
  for limit in (100, 300, None):
    predict = functools.partial(
      detection.predict,
      anchors=network.anchors,
      overlap=network.overlap,
      limit=limit,
    )
    label = f'{limit or "all"} of {boxes} boxes kept'
    alternatives[label] = (jax.jit(predict), output)
  title = f'{args.model}, {args.bits} bits, batch {args.batch}, {args.size} px'
  show(table(title, compare(alternatives, 5), 'forward pass', args.batch))


if __name__ == '__main__':
  main()
