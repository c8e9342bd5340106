"""Batches of a set on disk: shuffled, decoded ahead, fed to the device.

What a batch holds depends on the seed and its step only: not on the number of
processes or workers, nor on where a run was cut. grain does the reading ahead;
it is imported where it is used: 1.6 s that other runs save.
"""

import dataclasses
import functools
import gc
import math
from collections.abc import Iterator

import numpy as np
from absl import flags

from fastsnn_jax.data import decode
from fastsnn_jax.data.loader_arguments import check
from fastsnn_jax.data.order import Draws, permutation
from fastsnn_jax.data.squares import padded
from fastsnn_jax.data.stream import Source
from fastsnn_jax.data.workers import check_room, cores, start_worker
from fastsnn_jax.errors import UserError

_ENDLESS = 2**50  # examples; more than a run can see
_PATIENCE = 100  # examples, before pictures that fail become an error


class Loader:
  """Batches of one split, each process its part.

  Args:
    source: the split.
    batch: examples per step, of all processes together.
    seed: of the order and of the crops; 0 or more.
    size: of the images, in pixels, which then are RGB. None takes them as they
      are; then all must have one size, and the channels of the set.
    train: whether `training` crops; False shows it what evaluation sees.
    crop: 'none'; 'random_resized' for ImageNet's (see `decode.random_box`);
      'squash', the whole picture, for boxes; or 'pad', the picture as it is at
      the top left, for masks. All but the first need a size.
    fill: 3 numbers in 0..255, the colour to pad with.
    process_index, process_count: this process gets that part of each batch.
    workers: processes that decode; 0 for threads of this one. Pillow lets
      threads run side by side, so workers pay off on many cores only, and take
      some seconds to start.

  Attributes:
    epoch_steps: steps of an epoch, the last one with filled-up rows.
    shape: of an image, (height, width, channels).

  Raises:
    UserError: an argument out of range, an empty split, too little shared
      memory for the workers, or with size=None no picture that can be decoded.
  """

  def __init__(
    self,
    source: Source,
    *,
    batch: int,
    seed: int,
    size: int | None,
    train: bool,
    crop: str = 'none',
    fill: tuple[int, int, int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
  ):
    check(
      source, batch, seed, size, crop, process_index, process_count, workers
    )
    if crop == 'pad' and (fill is None or len(fill) != 3):
      raise UserError(
        f"crop is 'pad', but fill is {fill}; give the colour to pad with, such "
        'as (124, 116, 104)'
      )
    self.source, self.batch, self.seed, self.size = source, batch, seed, size
    self.random = train and crop == 'random_resized'
    self.crop, self.fill = crop, fill
    self.process_index, self.workers = process_index, workers
    self.local = batch // process_count
    self.epoch_steps = -(-len(source) // batch)
    self.shape = (size, size, 3) if size else source.shape()
    self._skipped, self._told = {}, 0
    # Each worker has a batch in the making and two on their way.
    masks = size * size if crop == 'pad' else 0
    example = math.prod(self.shape) + masks
    check_room(3 * workers * self.local * example)

  @property
  def skipped(self) -> int:
    """How many examples could not be decoded so far, each counted once."""
    return len(self._skipped)

  @property
  def skipped_names(self) -> tuple[str, ...]:
    """Their names, in the order in which they were met."""
    return tuple(self.source.name(index) for index in self._skipped)

  def complaints(self) -> list[str]:
    """What the user should know of those skipped since the last call."""
    new = self.skipped_names[self._told :]
    self._told += len(new)
    if not new:
      return []
    names = ', '.join(new[:3]) + (', …' if len(new) > 3 else '')
    more = 'more ' if self._told > len(new) else ''
    return [
      f'{len(new)} {more}of {len(self.source)} pictures cannot be decoded and '
      f'count nothing ({names})'
    ]

  def training(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end, from a step on; epochs follow one another.

    Each epoch shows every example once, in an order of its own. Its last batch
    is filled up with examples of the same epoch, their mask 0. An example that
    cannot be decoded keeps its row, grey and with mask 0.

    Returns:
      An iterator of {'image': uint8 [B/P, *shape], 'label': int32 [B/P], or
      the labels that the source has, 'mask': float32 [B/P]}; `close` it to end
      its threads or workers.

    Raises:
      UserError: a negative step; when iterated, files that cannot be read, a
        worker that was killed, or more pictures that fail than not.
    """
    if start_step < 0:
      raise UserError(f'start_step is {start_step}; it must be 0 or more')
    # Steps come as int32 from the device, where positions would overflow.
    return self._batches(_Rows(self, int(start_step), _ENDLESS, True))

  def evaluation(self) -> Iterator[dict[str, np.ndarray]]:
    """One pass in order: batches as of `training`, without random crops.

    The last batch is filled up with examples from the start, their mask 0.
    """
    count = self.epoch_steps * self.local
    return self._batches(_Rows(self, 0, count, False))

  def example(self, step: int, row: int, train: bool):
    """Row `row` of the global batch `step`: {name: array}, and 'skipped'."""
    epoch, within = divmod(step, self.epoch_steps)
    position = within * self.batch + row
    index = position % len(self.source)
    if train:
      index = int(permutation(self.seed, epoch, len(self.source))[index])
    encoded, label = self.source[index]
    skipped = -1
    try:
      if self.size is None:
        image = self._as_it_is(encoded, index)
      elif self.crop == 'pad':
        image = self._padded(encoded, index)
      elif self.crop == 'squash':
        image = decode.resized(encoded, self.size, _everything)
      elif train and self.random:
        draws = Draws(self.seed, step * self.batch + row)
        box = functools.partial(decode.random_box, uniform=draws)
        image = decode.resized(encoded, self.size, box)
      else:
        box = functools.partial(decode.centre_box, size=self.size)
        image = decode.resized(encoded, self.size, box)
    except decode.Undecodable:
      skipped, image = index, np.full(self.shape, 127, np.uint8)
    counts = position < len(self.source) and skipped < 0
    labels = label if isinstance(label, dict) else {'label': np.int32(label)}
    return {
      'image': image,
      **labels,
      'mask': np.float32(counts),
      'skipped': np.int64(skipped),
    }

  def _as_it_is(self, encoded, index):
    image = decode.whole(encoded, self.shape[-1])
    if image.shape != self.shape:
      raise UserError(
        f'{self.source.name(index)} has the shape {image.shape}, those before '
        f'{self.shape}; images taken as they are must have one, so give a size '
        'to bring them to'
      )
    return image

  def _padded(self, encoded, index):
    image = decode.whole(encoded, 3)
    height, width = image.shape[:2]
    if max(height, width) > self.size:
      raise UserError(
        f'{self.source.name(index)} has {width} x {height} pixels, too many to '
        f'be padded to {self.size}; choose a size of {max(height, width)} or '
        'more'
      )
    return padded(image, self.size, self.fill)

  def _batches(self, examples):
    import grain

    # `mp_prefetch` deals elements out to the workers: they have to be batches.
    # Threads take single examples, so that the first batch comes soonest.
    data = grain.MapDataset.source(examples)
    if self.workers:
      if not flags.FLAGS.is_parsed():  # grain reads its own, even in a library
        flags.FLAGS.mark_as_parsed()
      options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      data = data.batch(self.local).to_iter_dataset(options)
      several = grain.MultiprocessingOptions(num_workers=self.workers)
      data = data.mp_prefetch(several, worker_init_fn=start_worker)
    else:
      ahead = max(2 * self.local, cores())
      options = grain.ReadOptions(cores(), ahead)
      data = data.to_iter_dataset(options).batch(self.local)
    return self._counted(iter(data))

  def _counted(self, batches):
    seen = failed = 0
    try:
      for batch in batches:
        if self.workers:  # out of shared memory, which is little, at once
          batch = {name: np.array(x) for name, x in batch.items()}
        indices = batch.pop('skipped')
        indices = indices[indices >= 0].tolist()
        self._skipped.update(dict.fromkeys(indices))
        seen, failed = seen + self.local, failed + len(indices)
        enough = min(_PATIENCE, len(self.source) * self.local // self.batch)
        if 2 * failed > seen >= enough:
          names = ', '.join(self.skipped_names[:3])
          raise UserError(
            f'{failed} of {seen} pictures could not be decoded ({names}, …); '
            'most must be JPEG, PNG or the like, so look at these files'
          )
        yield batch
    except RuntimeError as error:
      if 'terminated unexpectedly' not in str(error):
        raise
      raise UserError(
        f'one of {self.workers} worker processes that decode was killed (exit '
        f'code {str(error).partition("exit code ")[2].partition(".")[0]}), as '
        'happens where memory is short; use fewer workers, or none (threads '
        'decode too), then the same command goes on'
      ) from error
    finally:
      batches.close()
      if self.workers:
        # What grain raised at its end still holds batches, in a circle, which
        # would stay in shared memory.
        gc.collect()


def _everything(width, height):
  return 0, 0, width, height


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The rows of one process, from a step on, as grain takes them."""

  loader: Loader
  start_step: int
  count: int
  train: bool

  def __len__(self):
    return self.count

  def __getitem__(self, number):
    step, row = divmod(number, self.loader.local)
    row += self.loader.process_index * self.loader.local
    return self.loader.example(self.start_step + step, row, self.train)
