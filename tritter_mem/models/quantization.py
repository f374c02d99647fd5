from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    def covers(self, name):
        return False

    def scheme_of(self, name):
        raise KeyError


def read_quantization(a, b):
    return Quantization()
