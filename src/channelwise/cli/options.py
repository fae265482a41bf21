"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model directory, a hub name, or demo.", show_default=False)
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="TEXT|IMAGES",
        help="Calibration text: .txt, .jsonl or .tsv; for image models a folder of images, or a .npz.",
        show_default=False,
    ),
]
Recipe = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME|FILE.yaml", help="What to do; see channelwise recipes.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change an entry of the recipe: head=null, stream.inputs.bits=8. Repeatable."
    ),
]
Samples = Annotated[
    int | None, typer.Option("--samples", metavar="N", help="Calibration samples. Default: the recipe's.")
]
CalibrationLength = Annotated[
    int | None, typer.Option("--length", metavar="L", help="Tokens of a calibration sample. Default: the recipe's.")
]
PerplexityText = Annotated[
    str | None, typer.Option("--perplexity", metavar="TEXT", help="Measure perplexity on this text.")
]
EmbeddingsFile = Annotated[
    str | None,
    typer.Option("--embeddings", metavar="FILE.tsv", help="Measure sentence embeddings; labels give a linear probe."),
]
ClassificationFile = Annotated[
    str | None,
    typer.Option("--classification", metavar="FILE.tsv", help="Measure accuracy on its columns text and label."),
]
ImageFiles = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="DIR|FILE.npz",
        help="Measure accuracy on a folder with a sub-folder for each label, or the arrays images and labels.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Chooses the calibration samples.")]
Device = Annotated[str, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1, …")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the model goes.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DIR if it exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run into DIR, if there is one.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Quantize the first block only, write nothing, tell what all will take.")
]
ActivationMemory = Annotated[
    str | None,
    typer.Option(
        "--activation-memory",
        metavar="SIZE",
        help="Hidden states kept in memory, such as 2GiB; the others go to disk. Default: 4GiB.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
# `process` looks for it among the arguments, because an error may come before a verb runs.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
