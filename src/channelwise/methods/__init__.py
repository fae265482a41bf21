"""The methods, by the names that recipes use. A new method is one file and a line here."""

from channelwise.methods.none import NoTransform
from channelwise.methods.os_plus import OutlierSuppressionPlus
from channelwise.methods.outliertune import OutlierTune
from channelwise.methods.smoothquant import SmoothQuant

METHODS = {
    "none": NoTransform,
    "smoothquant": SmoothQuant,
    "os_plus": OutlierSuppressionPlus,
    "outliertune": OutlierTune,
}

__all__ = ["METHODS", "NoTransform", "OutlierSuppressionPlus", "OutlierTune", "SmoothQuant"]
