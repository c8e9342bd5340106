"""Images per second and core: our input beside a plain loop with Pillow.

python -m benchmarks.input [--images 300] [--scale 1] [--dir DIR]

Both read the same JPEGs (of their own making, or those below DIR), cut a random
part out of each and resize it. Seconds are those of the processor, of all
threads together: what one core does, however busy the machine is.
"""

import argparse
import io
import pathlib
import tempfile
import time

import numpy as np
import PIL.Image

import fastsnn_jax as fs
from fastsnn_jax.data import Shuffle
from fastsnn_jax.data.decode import cores, random_box
from fastsnn_jax.data.readers.folder import SUFFIXES
from fastsnn_jax.data.stream import Draws
from fastsnn_jax.tasks.classification.data import open_data


def photograph(random, height, width):
  """Noise with the spectrum of photographs, so that JPEG takes its bytes."""
  frequency = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  )
  frequency[0, 0] = 1
  noise = np.fft.rfft2(random.standard_normal((3, height, width)))
  layers = np.fft.irfft2(noise / frequency**1.2, s=(height, width))
  layers[1:] = 0.8 * layers[0] + 0.3 * layers[1:]
  layers = (layers - layers.mean()) / layers.std()
  return np.clip(127 + 55 * layers, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def write(directory, count, scale):
  """A folder of pictures of about 500 x 375 pixels times scale."""
  random = np.random.default_rng(0)
  for part, images in (('train', count), ('test', 1)):
    for number in range(images):
      shape = random.integers((345, 460), (405, 540))
      shape = (scale * shape).astype(int)
      image = photograph(random, *(shape if number % 4 else shape[::-1]))
      path = directory / part / f'class{number % 5}' / f'{number}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(image).save(path, quality=90)


def plain(paths, size):
  """What anybody would write first."""
  for number, path in enumerate(paths):
    image = PIL.Image.open(io.BytesIO(path.read_bytes())).convert('RGB')
    image = image.crop(random_box(*image.size, Draws(0, number)))
    image = image.resize((size, size), PIL.Image.Resampling.BILINEAR)
    yield np.asarray(image)


def ours(split, count):
  """The training batches that hold so many images."""
  size = min(64, count)
  batches = split.batches(size, shuffle=Shuffle(0))
  for _ in range(max(count // size, 1)):
    yield from next(batches)['image']
  batches.close()


def measure(images):
  """(images per second of processor, images per second of the clock)."""
  processor, clock = time.process_time(), time.perf_counter()
  count = sum(1 for _ in images)
  return (
    count / (time.process_time() - processor),
    count / (time.perf_counter() - clock),
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--images', type=int, default=300)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--scale', type=float, default=1)
  parser.add_argument('--dir', help='train/CLASS/PICTURE and test/…')
  parser.add_argument('--repeats', type=int, default=7)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(args.dir or temporary)
    if not args.dir:
      write(directory, args.images, args.scale)
    paths = [
      path
      for path in sorted((directory / 'train').rglob('*'))
      if path.suffix.lower() in SUFFIXES
    ][: args.images]
    settings = fs.Data(
      'benchmark', path=str(directory), stream=True, size=args.size
    )
    split = open_data(settings).train.take(range(len(paths)))
    ways = {
      'plain Pillow loop': lambda: plain(paths, args.size),
      'Stream (ours)': lambda: ours(split, len(paths)),
    }
    best = dict.fromkeys(ways, (0.0, 0.0))
    for _ in range(args.repeats):  # in turn: a busy spell hits them all
      for name, way in ways.items():
        best[name] = tuple(map(max, best[name], measure(way())))
    bytes_each = np.mean([path.stat().st_size for path in paths])
  unit, _ = best['plain Pillow loop']
  print(
    f'\n{len(paths)} JPEGs of {bytes_each / 1e3:.0f} kB, random parts resized '
    f'to {args.size}, {cores()} cores\n'
  )
  print('| | images/s and core | ratio | images/s of the clock |')
  print('|---|--:|--:|--:|')
  for name, (core, clock) in best.items():
    print(f'| {name} | {core:.0f} | {core / unit:.2f} | {clock:.0f} |')


if __name__ == '__main__':
  main()
