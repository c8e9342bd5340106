"""What a long run shows and writes: a bar or lines, JSON lines, TensorBoard.

Of several processes the first speaks for all.
"""

import contextlib
import datetime
import json
import pathlib
import signal
import sys
import threading
import time

from fastsnn_jax import distributed
from fastsnn_jax.errors import UserError


class Bar:
  """Progress of one piece of work: a rich bar on a terminal, else lines.

  Args:
    title: what is going on.
    total, done: units of work, and how many of them were done before.
  """

  def __init__(self, title: str, total: int, done: int = 0):
    self._title, self._total = title, total
    self._first = self._done = done
    self._started = self._last_line = time.monotonic()
    self._bar = None

  def __enter__(self):
    if sys.stderr and sys.stderr.isatty() and distributed.first():
      from rich import console, progress

      self._bar = progress.Progress(
        progress.TextColumn('{task.description}', markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn('{task.fields[note]}', markup=False),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
      )
      self._task = self._bar.add_task(
        self._title, total=self._total, completed=self._done, note=''
      )
      self._bar.start()
    return self

  def __exit__(self, *error):
    if self._bar is not None:
      self._bar.stop()

  def advance(self, units: int = 1, note: str = '') -> None:
    """So many units more are done; `note` stands behind the bar."""
    self._done += units
    if self._bar is not None:
      self._bar.update(self._task, advance=units, note=note)
      return
    now = time.monotonic()
    if now - self._last_line > 30:  # a line now and then, for log files
      self._last_line = now
      rate = (now - self._started) / max(self._done - self._first, 1)
      seconds = round(rate * (self._total - self._done))
      share = 100 * self._done / max(self._total, 1)
      left = f'{datetime.timedelta(seconds=seconds)} left'
      say(f'{self._title}: {share:3.0f} %  {note}  {left}')

  def line(self, text: str, *, own: bool = False) -> None:
    """A line that stays, above the bar; see `say`."""
    if self._bar is not None:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      say(text, own=own)


def say(text: str, *, own: bool = False) -> None:
  """A line on standard error; if it is this process's `own`, of whichever."""
  if sys.stderr and (own or distributed.first()):
    print(text, file=sys.stderr, flush=True)


class Log:
  """Metrics as JSON lines, and as TensorBoard events beside them."""

  def __init__(self, workdir):
    self._writers, self._resumed, self._made = {}, {}, False
    self._workdir = pathlib.Path(workdir)
    self._path = self._workdir / 'metrics.jsonl'

  def write(self, stage: str, step: int, **metrics) -> None:
    """One line: {"stage": …, "step": …, **metrics}."""
    if not distributed.first():
      return
    row = {'stage': stage, 'step': step, **metrics}
    with _written(self._path):
      if self._made:
        self._path.stat()  # the workdir was not removed meanwhile
      with self._path.open('a') as file:
        file.write(json.dumps(row) + '\n')
      self._made = True
      if (writer := self._writer(stage)) is not None:
        from tensorboardX import summary

        for name, value in metrics.items():
          self._event(writer, step, summary=summary.scalar(name, value))
        writer.flush()

  def rows(self) -> list[dict]:
    """All rows; what is none, such as a line cut by a kill, is left out."""
    rows = []
    if self._path.is_file():
      text = self._path.read_text('utf-8', errors='replace')
      for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
          rows.append(json.loads(line))
    return [row for row in rows if _is_row(row)]

  def curves(self) -> dict[str, dict[str, list]]:
    """The rows as {stage: {column: values}}."""
    curves = {}
    for row in self.rows():
      columns = curves.setdefault(row.pop('stage'), {})
      for name, value in row.items():
        columns.setdefault(name, []).append(value)
    return curves

  def rewind(self, stage: str, step: int) -> None:
    """Drops what a killed run wrote after the step that it resumes from."""
    if not distributed.first():
      return
    self._resumed[stage] = step
    rows = [r for r in self.rows() if r['stage'] != stage or r['step'] <= step]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    temporary = self._path.with_suffix('.tmp')
    with _written(self._path):
      temporary.write_text(text)
      temporary.replace(self._path)
    self._made = True

  def close(self) -> None:
    for writer in filter(None, self._writers.values()):
      with contextlib.suppress(OSError):  # what was flushed is on disk
        writer.close()
    self._writers.clear()

  def _writer(self, stage):
    """Writes at once: a thread that waits would fail where nobody listens."""
    if stage not in self._writers:
      self._writers[stage] = None
      with contextlib.suppress(ImportError):  # the JSON lines have it all
        from tensorboardX import event_file_writer
        from tensorboardX.proto.event_pb2 import SessionLog

        directory = self._workdir.absolute() / 'tensorboard' / stage
        directory.mkdir(parents=True, exist_ok=True)
        writer = event_file_writer.EventsWriter(str(directory / 'events'))
        self._writers[stage] = writer
        # TensorBoard hides what a killed run wrote from this step on.
        start = SessionLog(status=SessionLog.START)
        step = self._resumed.get(stage, 0) + 1
        self._event(writer, step, session_log=start)
    return self._writers[stage]

  def _event(self, writer, step, **what):
    from tensorboardX.proto.event_pb2 import Event

    writer.write_event(Event(wall_time=time.time(), step=step, **what))


def _is_row(value):
  if not isinstance(value, dict):
    return False
  return isinstance(value.get('stage'), str) and type(value.get('step')) is int


@contextlib.contextmanager
def _written(path):
  """Turns a full disk into one line."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{path}: it cannot be written ({error.strerror}); make room, then the '
      'same command goes on'
    ) from error


@contextlib.contextmanager
def signals():
  """Yields a function that says which signal asked the run to end, or None."""
  caught = []

  def note(number, _):
    if caught:  # the second time the user means it
      raise KeyboardInterrupt(number)
    caught.append(number)

  ours = threading.current_thread() is threading.main_thread()
  names = (signal.SIGTERM, signal.SIGINT) if ours else ()
  before = {name: signal.signal(name, note) for name in names}
  try:
    yield lambda: caught[0] if caught else None
  finally:
    for name, handler in before.items():
      signal.signal(name, handler)
