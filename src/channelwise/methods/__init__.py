"""The methods, by the names that recipes use. A new method is one file and a line here.

A method from outside the package needs neither: recipes name it by its import path (`imported`).
"""

from channelwise.methods.awq import Awq
from channelwise.methods.llm_fp4 import LlmFp4
from channelwise.methods.none import NoTransform
from channelwise.methods.os_plus import OutlierSuppressionPlus
from channelwise.methods.outliertune import OutlierTune
from channelwise.methods.smoothquant import SmoothQuant

METHODS = {
    "none": NoTransform,
    "smoothquant": SmoothQuant,
    "os_plus": OutlierSuppressionPlus,
    "outliertune": OutlierTune,
    "llm_fp4": LlmFp4,
    "awq": Awq,
}

__all__ = ["METHODS", "Awq", "LlmFp4", "NoTransform", "OutlierSuppressionPlus", "OutlierTune", "SmoothQuant"]
