"""What a network of the zoo costs as a function, beside its table.

Signed at T = 3, 7 and 15, and until quiet at T = 3: as the networks are, and
folded as evaluation runs them. Memory is what the compiled program states as
temporary.
"""

import statistics

import fastsnn_jax as fs
from benchmarks.inference import forward, images_of, variables_of
from benchmarks.timing import compare

# (model, side of images, batch, bits)
CASES = (
  ('cifar_resnet20', 32, 16, (2, 3, 4)),
  ('small_deeplab', 33, 16, (2, 3, 4)),
)
QUICK = (('small_resnet8', 8, 16, (2,)),)
COLUMNS = ['', 'ms', 'times the table', 'MB', 'times the table']


def pair(model, bits, images):
  """{'table': (network, variables), 'function': the same, traced}."""
  table = fs.build(model, bits)
  variables = variables_of(table, images)

  def function(variables, images):
    return table.apply(variables, images)[0]

  traced = fs.from_function(function, variables, images)
  return {'table': (table, variables), 'function': traced}


def rows(name, networks, images, repeats):
  """Of a table and of its function."""
  programs = {
    kind: forward(network).lower(variables, images).compile()
    for kind, (network, variables) in networks.items()
  }
  took = compare(
    {
      kind: (program, networks[kind][1], images)
      for kind, program in programs.items()
    },
    repeats,
  )
  needed = {
    kind: program.memory_analysis().temp_size_in_bytes
    for kind, program in programs.items()
  }
  for kind, seconds in took.items():
    pairs = zip(seconds, took['table'], strict=True)
    yield [
      f'{name}: {kind}',
      round(1e3 * statistics.median(seconds), 1),
      round(statistics.median(mine / limit for mine, limit in pairs), 2),
      round(needed[kind] / 1e6, 1),
      round(needed[kind] / needed['table'], 2),
    ]


def tables(quick):
  for model, side, batch, widths in QUICK if quick else CASES:
    images, found = images_of(side, batch), []
    for bits in widths:
      both = pair(model, bits, images)
      for mode in ('signed', 'settled') if bits == 2 else ('signed',):
        twins = {
          kind: (fs.to_spiking(network, mode), variables)
          for kind, (network, variables) in both.items()
        }
        folded = {kind: fs.fold(*twin) for kind, twin in twins.items()}
        name = f'{mode}, T = {2**bits - 1}'
        for label, networks in ((name, twins), (f'{name}, folded', folded)):
          found += rows(label, networks, images, 2 if quick else 7)
    title = f'Function beside table, {model}, {side} x {side}, batch {batch}'
    yield {'title': title, 'columns': COLUMNS, 'rows': found}
