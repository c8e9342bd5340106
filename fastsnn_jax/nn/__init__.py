"""What a spiking network is: quantisers, neurons, layers, tables of them."""
