"""`channelwise evaluate`: measure a model, quantized or not."""

from typing import Annotated

import typer

from channelwise.cli.options import (
    AsJson,
    ClassificationFile,
    Debug,
    Device,
    EmbeddingsFile,
    ImageFiles,
    Model,
    PerplexityText,
)

Length = Annotated[
    int | None, typer.Option("--length", metavar="L", help="Tokens of a window. Default: 512 or the model's limit.")
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="FP_MODEL",
        help="The floating-point original: needed for --embeddings; gives the agreement of a classifier's answers.",
    ),
]


def evaluate(
    model: Model,
    perplexity: PerplexityText = None,
    embeddings: EmbeddingsFile = None,
    classification: ClassificationFile = None,
    images: ImageFiles = None,
    against: Against = None,
    length: Length = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a model, quantized or not.

    Perplexity: the whole text tokenized once, in windows of L, mean token loss over all of them. Embeddings: mean of
    the last hidden states, cosine to those of --against, and a linear probe if FILE.tsv has the columns text and label.

    Classifiers: accuracy, and the share of answers that are those of --against. A label is a name of the model's, or
    the number of a class, from 0. Images go through the model's own image processor. Broken images are not skipped:
    they are counted, the first is named, and nothing is measured.
    """
    from channelwise.cli.output import print_json, quiet_libraries, results_console

    quiet_libraries()
    from channelwise import api
    from channelwise.report.tables import evaluation_table

    results = api.evaluate(
        model,
        perplexity=perplexity,
        length=length,
        embeddings=embeddings,
        classification=classification,
        images=images,
        against=against,
        device=device,
    )
    if as_json:
        print_json(results)
        return
    results_console().print(evaluation_table(results))
