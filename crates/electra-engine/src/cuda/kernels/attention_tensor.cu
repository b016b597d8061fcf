// tensor cores
