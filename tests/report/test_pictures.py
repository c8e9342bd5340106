"""Pictures of maps: padding is no pixel, and each class has a colour."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.report import predictions


def draw(example, classes):
  return predictions.draw(example, '2 bits', classes)


def example_of(sizes, side=13):
  """Padded images; beside them the networks differ everywhere."""
  shape = len(sizes), side, side
  truth, ann = np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8)
  snn = np.ones(shape, np.uint8)
  for i, (width, height) in enumerate(sizes):
    truth[i, :height, :width] = 0
    snn[i, :height, :width] = 0
    snn[i, 0, :width] = 1
  image = np.zeros((*shape, 3), np.uint8)
  return {'image': image, 'truth': truth, 'ann': ann, 'snn': snn}


def test_padding_is_neither_drawn_nor_counted():
  sizes = [(10, 4), (5, 8)]
  example = example_of(sizes) | {'size': np.array(sizes)}
  axes = np.reshape(draw(example, ('a', 'b')).axes, (2, 5))
  for (width, height), line in zip(sizes, axes, strict=True):
    for ax in line:
      assert ax.images[0].get_array().shape[:2] == (height, width)
    (text,) = line[4].texts
    assert text.get_text() == f'{100 / height:.2f} % of the pixels'


def test_without_a_size_all_is_image():
  figure = draw(example_of([(10, 4)]), ('a', 'b'))
  assert figure.axes[0].images[0].get_array().shape[:2] == (13, 13)
  differ = 100 * (13 * 13 - 30) / 13**2
  assert figure.axes[4].texts[0].get_text().startswith(f'{differ:.2f} %')


def voc_oracle(label):
  """A bit of the label to each channel in turn, the highest place first."""
  colour = [0, 0, 0]
  for place in range(7, -1, -1):
    for channel in range(3):
      colour[channel] |= (label & 1) << place
      label >>= 1
  return colour


@pytest.mark.parametrize('count', [2, 13, 14, 21, 255])
def test_no_two_classes_have_a_colour(count):
  table = predictions._colours(count)
  assert table.shape == (256, 3)
  assert len(np.unique(table[[*range(count), 255]], axis=0)) == count + 1
  if count <= 13:
    assert tuple(table[255]) == to_rgb('#808080')
  else:
    expected = [voc_oracle(label) for label in range(256)]
    np.testing.assert_array_equal(np.rint(255 * table), expected)
    # As VOC's development kit prints them: aeroplane and person.
    assert [expected[i] for i in (1, 15)] == [[128, 0, 0], [192, 128, 128]]
    assert table.max() <= 1


@pytest.mark.parametrize('count', [3, 21, 60])
def test_the_legend_has_the_colours_of_the_maps(count, tmp_path):
  labels = np.resize(np.arange(count, dtype=np.uint8), (1, 8, 8))
  example = {'image': np.zeros((1, 8, 8, 3), np.uint8)}
  example |= {'truth': labels, 'ann': labels, 'snn': labels}
  figure = draw(example, [f'class {i}' for i in range(count)])
  patches = figure.legends[0].get_patches()
  colours = [patch.get_facecolor()[:3] for patch in patches]
  np.testing.assert_allclose(colours, predictions._colours(count)[:count])
  shown = figure.axes[1].images[0].get_array()
  np.testing.assert_allclose(
    shown[0], predictions._colours(count)[labels[0, 0]]
  )
  with matplotlib.rc_context({'savefig.dpi': 40}):
    figure.savefig(tmp_path / 'a.png')


def test_tasks_bring_the_truth_and_the_size_of_masks():
  batch = {
    'image': np.zeros((2, 9, 9, 3), np.uint8),
    'label': np.zeros((2, 9, 9), np.uint8),
    'size': np.array([[5, 9], [9, 7]]),
  }
  maps, boxes, labels = (
    tasks.for_network(fs.build(model))
    for model in ('small_deeplab', 'small_yolo', 'small_resnet8')
  )
  assert maps.pictures(batch)['size'].tolist() == [[5, 9], [9, 7]]
  assert maps.pictures(batch)['truth'] is batch['label']
  drawn = boxes.pictures({**batch, 'boxes': np.zeros((2, 1, 4))})
  assert drawn.keys() == {'truth'}
  assert drawn['truth'].keys() == {'boxes', 'label'}
  del batch['size']
  assert maps.pictures(batch).keys() == {'truth'}
  assert labels.pictures(batch) is None
