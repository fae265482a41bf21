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
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks", metavar="A,B,C", help="Tasks of lm-evaluation-harness: piqa,arc_easy,… (lm-eval ls tasks)."
    ),
]
TaskData = Annotated[
    str | None,
    typer.Option(
        "--task-data",
        metavar="FOLDER",
        help="Read the tasks' documents from FOLDER/A.jsonl, … instead of the hub.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N documents of each task.")]
FewShot = Annotated[
    int | None, typer.Option("--fewshot", metavar="N", help="Examples before each question. Default: the task's.")
]
Batch = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", help="Rows of the tasks that run together. Default: as many as fit well."),
]


def evaluate(
    model: Model,
    perplexity: PerplexityText = None,
    embeddings: EmbeddingsFile = None,
    classification: ClassificationFile = None,
    images: ImageFiles = None,
    against: Against = None,
    length: Length = None,
    tasks: Tasks = None,
    task_data: TaskData = None,
    limit: Limit = None,
    fewshot: FewShot = None,
    batch: Batch = None,
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

    Tasks: lm-evaluation-harness asks and scores, with its own prompts; install it with "channelwise[eval]". Numbers to
    publish need all documents, so leave --limit out. Examples of --fewshot N come from FOLDER/A.train.jsonl where the
    task takes them from its training split.
    """
    from channelwise.cli.output import print_json, quiet_libraries, results_console
    from channelwise.cli.progress import reported_progress

    quiet_libraries()
    from channelwise import api
    from channelwise.report.tables import evaluation_table
    from channelwise.report.task_table import task_remark, task_table

    with reported_progress() as progress:
        results = api.evaluate(
            model,
            perplexity=perplexity,
            length=length,
            embeddings=embeddings,
            classification=classification,
            images=images,
            against=against,
            tasks=tasks,
            task_data=task_data,
            limit=limit,
            fewshot=fewshot,
            batch=batch,
            device=device,
            progress=progress,
        )
    if as_json:
        print_json(results)
        return
    console = results_console()
    if "tasks" in results:
        console.print(task_table(results["tasks"], console.width))
        console.print(f"{task_remark(results['tasks'])}\n".lstrip(), style="dim")
    console.print(evaluation_table(results))
