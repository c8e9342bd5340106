"""The folders of the library, in the order of their imports."""

# A room imports rooms that stand before it. docs/architecture.md draws them.
ROOMS = [
  *('version', 'errors', 'distributed', 'nn', 'tracing', 'data'),
  *(
    'report',
    'architectures',
    'tasks',
    'checkpoint',
    'evaluation',
    'inference',
  ),
  *('torch_interop', 'training', 'conversion', 'deployment', 'experiment'),
  'config',
  'recipes',
  '__init__',
]
