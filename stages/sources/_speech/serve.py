"""The loopback server of the labelled speech: it speaks every recording when it is asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

from winnow.stages.sources._scenes.payload import Answer
from winnow.stages.sources._scenes.serve import Find, SceneServer, find_row, run
from winnow.stages.sources._speech.noise import World
from winnow.stages.sources._speech.payload import answer


class SpeechServer(SceneServer):
    """Serves a SpeechSource's recordings, as ``SceneServer`` does pictures."""

    module = "winnow.stages.sources._speech.serve"


def find(world: World, target: str) -> Answer:
    """Return the answer for a request target; 404 for whatever is no row's URL."""
    return find_row(world, target, answer, what="recording")


def _finder(parameters: dict[str, Any]) -> Find:
    from winnow.contracts.parameters import validate
    from winnow.stages.sources.speech import SpeechSource

    return partial(find, SpeechSource(**validate(SpeechSource, parameters)).world())


if __name__ == "__main__":
    run(_finder)
