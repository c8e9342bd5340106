"""What operations and moved bits cost in pJ: a named, replaceable model."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class EnergyModel:
  """Energy of operations in pJ, scaled by the bits of what they work on.

    multiply-accumulate  multiply w a / 32^2 + add s / 32
    accumulate           add s / 32
    s = min(32, w + a + ceil(log2 fan_in)), the bits that hold the sum

  with w bits a weight, a bits an input (1 for a spike) and fan_in weights per
  output. A neuron's update is two adds, of its current and of its threshold.
  Moved bits cost `move` each, a line of their own.

  Attributes:
    name: where the numbers come from.
    multiply, add: of 32-bit floats; 3.7 + 0.9 is a multiply-accumulate.
    move: of a bit to or from memory; of an SRAM of 32 KB, 20 pJ for 64 bits.

  Source: Horowitz, "Computing's energy problem", ISSCC 2014
  (https://doi.org/10.1109/ISSCC.2014.6757323).

  >>> model = EnergyModel()
  >>> round(model.mac(32, 32, 144), 3), round(model.accumulate(2, 144), 3)
  (4.6, 0.309)
  """

  name: str = '45 nm, Horowitz 2014'
  multiply: float = 3.7
  add: float = 0.9
  move: float = 20 / 64

  def mac(self, weight_bits: int, input_bits: int, fan_in: int) -> float:
    """pJ of a multiply-accumulate."""
    product = self.multiply * weight_bits * input_bits / 32**2
    return product + self._sum(weight_bits + input_bits, fan_in)

  def accumulate(self, weight_bits: int, fan_in: int) -> float:
    """pJ of adding a weight for a spike."""
    return self._sum(weight_bits + 1, fan_in)

  def update(self, bits: int) -> float:
    """pJ of a neuron's update, with a sum of so many bits."""
    return 2 * self.add * min(bits, 32) / 32

  def _sum(self, bits, fan_in):
    return self.add * min(32, bits + math.ceil(math.log2(max(fan_in, 1)))) / 32
