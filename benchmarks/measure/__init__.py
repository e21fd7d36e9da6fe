"""How it is measured: the machine, processes, clocks, draws, rivals; rows as they are stored."""
