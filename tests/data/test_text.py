"""Text files of data sets: one encoding, any line ends."""

import codecs
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.masks import mask, write
from support.shared import ROOT

from fastsnn_jax.data.readers import text
from fastsnn_jax.errors import UserError

NAMES = ['Straße', '道路', 'car']
# Characters where `str.splitlines` splits, but no editor does.
WORDS = st.text(st.sampled_from('ab é道\x0b\x0c\x1c\x85\u2028')).map(
  lambda word: f'x{word}x'
)


@pytest.mark.parametrize('mark', [b'', codecs.BOM_UTF8])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(WORDS, min_size=1))
def test_lines_of_any_editor(tmp_path, mark, end, names):
  path = tmp_path / 'classes.txt'
  path.write_bytes(mark + (end.join(names) + end).encode())
  assert text.lines(path) == names
  path.write_bytes(mark + (end * 2).join(names).encode())
  assert text.listed(path, 'layout') == names


@pytest.mark.parametrize(
  ('content', 'byte'),
  [
    ('sky\nStraße'.encode('latin-1'), 'byte 8 is 0xdf'),
    (codecs.BOM_UTF8 + b'sky\n\xff', 'byte 7 is 0xff'),
    ('sky'.encode('utf-16'), 'byte 0 is 0xff'),
  ],
)
def test_another_encoding_is_refused_with_its_place(tmp_path, content, byte):
  path = tmp_path / 'classes.txt'
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf'classes\.txt is not UTF-8 \({byte}\)'):
    text.lines(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    text.read(tmp_path)
  with pytest.raises(UserError, match=r'a\.txt: no such file; the layout is x'):
    text.listed(tmp_path / 'a.txt', 'x')


def test_the_locale_does_not_matter(tmp_path):
  labels = mask(8, 6, 3)
  write(tmp_path, {'train': {'a': labels}, 'val': {'b': labels}}, '')
  (tmp_path / 'classes.txt').write_text('\n'.join(NAMES), encoding='utf-8')
  code = (
    'import sys; from fastsnn_jax.data.readers import voc; '
    'found = voc.read_masks(sys.argv[1]); print(ascii(found.classes))'
  )
  done = subprocess.run(
    [sys.executable, '-X', 'utf8=0', '-c', code, str(tmp_path)],
    check=True,
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.stdout.strip() == ascii(tuple(NAMES))
