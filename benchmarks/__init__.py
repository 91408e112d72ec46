"""How fast ConvLSTM is here, against everything else that computes it on a CPU. See README.md in this folder."""
