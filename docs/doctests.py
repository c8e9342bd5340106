"""Shows the examples of docstrings as code on the page of public names.

mkdocstrings takes text for markup, so that `[1, 2]` in a result is a link.
"""

import griffe


class Doctests(griffe.Extension):
  """Puts each block of `>>>` lines between fences."""

  def on_object(self, *, obj, **options) -> None:
    del options
    if not obj.is_alias and obj.docstring:
      obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
  """The text with its blocks of examples fenced.

  >>> fenced('One.')
  'One.'
  """
  paragraphs = text.split('\n\n')
  for i, paragraph in enumerate(paragraphs):
    if paragraph.startswith('>>>'):
      paragraphs[i] = f'```pycon\n{paragraph}\n```'
  return '\n\n'.join(paragraphs)
