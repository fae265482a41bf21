"""Documents of five tasks, made up: as the hub's data sets hold them, and as LLM Foundry's files do."""

import json
from pathlib import Path
from typing import Any

HUB: dict[str, list[dict[str, Any]]] = {
    "piqa": [
        {"goal": "the cat sees the dog", "sol1": "it was slow", "sol2": "it was quick and far from home", "label": 1},
        {"goal": "over the river?", "sol1": "the red house", "sol2": "the blue house", "label": 0},
        {"goal": "a dog hears it:\nthen", "sol1": "under the house", "sol2": "far", "label": 0},
        {"goal": "home", "sol1": "very slow", "sol2": "very quick", "label": 1},
    ],
    "arc_easy": [
        {
            "question": f"which {animal} was {pace}?",
            "choices": {"text": ["the red cat", "a dog", "the house", "it"], "label": ["A", "B", "C", "D"]},
            "answerKey": key,
        }
        for animal, pace, key in (("cat", "slow", "B"), ("dog", "far", "D"), ("dog", "quick", "A"))
    ],
    "boolq": [
        {"passage": "the dog hears the cat.\nthe cat is red", "question": "is the cat red", "label": 1},
        {"passage": "a house.\nQuestion: is it far? no", "question": "is the river blue", "label": 0},
        {"passage": "the river is slow", "question": "is it quick", "label": 0},
    ],
    "winogrande": [
        {"sentence": "the dog sees the cat so _ was quick.", "option1": "dog", "option2": "cat", "answer": "2"},
        {"sentence": "under the house the _ hears it", "option1": "red dog", "option2": "river", "answer": "1"},
        {"sentence": "it was _, then far", "option1": "blue", "option2": "black", "answer": "2"},
    ],
    "lambada_openai": [
        {"text": "the dog hears the cat.\n\nthe cat sees the dog"},
        {"text": "over the river it was far from home"},
        {"text": "a quick house"},
    ],
}
"""In the fields of the hub's data sets; their other fields are not read."""


def published(task: str) -> list[dict[str, Any]]:
    """The same documents as LLM Foundry's files have them, written out by hand."""
    return [_PUBLISHED[task](document) for document in HUB[task]]


def written(folder: Path, task: str, documents: list[dict[str, Any]], split: str = "") -> Path:
    """FOLDER/TASK.jsonl, or FOLDER/TASK.SPLIT.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{task}.{split}.jsonl" if split else f"{task}.jsonl")
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents), encoding="utf-8")
    return path


def _arc(document: dict[str, Any]) -> dict[str, Any]:
    gold = "ABCD".index(document["answerKey"])
    return {"query": f"Question: {document['question']}", "choices": document["choices"]["text"], "gold": gold}


def _winogrande(document: dict[str, Any]) -> dict[str, Any]:
    before, after = document["sentence"].split("_")
    contexts = [before + document["option1"], before + document["option2"]]
    return {"context_options": contexts, "continuation": after.strip(), "gold": int(document["answer"]) - 1}


_PUBLISHED = {
    "piqa": lambda document: {
        "query": f"Question: {document['goal']}\n",
        "choices": [document["sol1"], document["sol2"]],
        "gold": document["label"],
    },
    "arc_easy": _arc,
    "boolq": lambda document: {
        "query": f"Passage: {document['passage']}\nQuestion: {document['question']}?",
        "choices": ["no", "yes"],
        "gold": document["label"],
    },
    "winogrande": _winogrande,
    "lambada_openai": lambda document: {
        "context": document["text"].rpartition(" ")[0],
        "continuation": document["text"].rpartition(" ")[2],
    },
}
