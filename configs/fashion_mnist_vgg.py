"""Fashion-MNIST on a small VGG with batch norm and max pooling.

  python train.py --config configs/fashion_mnist_vgg.py --workdir runs/vgg \\
    --data.path DIR_OF_IDX_FILES
  python convert.py --config configs/fashion_mnist_vgg.py --workdir runs/vgg
  python -m benchmarks.calibrated --config configs/fashion_mnist_vgg.py \\
    --workdir runs/vgg

The last one converts the float network without training. Measured: float
88.79 %, 4 bits 88.51, 2 bits 84.45; docs/results.md has the spiking networks.
"""

import fastsnn_jax as fs


def table(bits, classes):
  """Six convolutions in three pairs; each pair but the first pools before."""
  weights = None if bits == 32 else fs.Apot(bits)
  rows, last = [], 'image'
  for i, features in enumerate((8, 8, 16, 16, 32, 32)):
    synapse = fs.Conv(features, weights=weights if i else None)
    if i in (2, 4):
      synapse = fs.Chain((fs.MaxPool(window=2), synapse))
    rows.append(fs.Layer(f'conv{i + 1}', synapse, (last,)))
    last = f'conv{i + 1}'
  pool, head = fs.GlobalAveragePool(), fs.Dense(classes, norm=False)
  return [*rows, fs.Layer('head', fs.Chain((pool, head)), (last,))]


fs.register_model('fashion_vgg', table, size=28, replace=True)
config = fs.Experiment(
  model='fashion_vgg',
  data=fs.Data('fashion_mnist', batch=128, eval_batch=250, crop=2),
  stages=(
    fs.Stage(32, epochs=4, learning_rate=0.1, schedule='cosine'),
    fs.Stage(4, epochs=2, learning_rate=0.04, schedule='cosine'),
    fs.Stage(2, epochs=2, learning_rate=0.04, schedule='cosine'),
  ),
  convert=fs.Conversion(tune='none'),
)
