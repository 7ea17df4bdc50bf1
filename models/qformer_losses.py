"""BLIP-2's first stage (Li et al. 2023, section 3.1): contrast, matching and generation.

The three losses see the same batch of pairs and the same Q-Former under three attention masks.

Tensor suffixes: B batch (pairs), N pairs to be matched, P patches, V vision width, Q queries,
T text tokens, D width of the Q-Former, E embedding, Y vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from winnow.contracts.errors import SetupError
from winnow.models.qformer import QFormer

INITIAL_TEMPERATURE = 0.07
_LEAST_TEMPERATURE = 0.01
_IGNORED = -100


def equal_texts(tokens_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return bool (B, B): whether two rows hold the same tokens. Every row equals itself."""
    shown_BT = torch.where(mask_BT, tokens_BT, -1)
    return (shown_BT[:, None, :] == shown_BT[None, :, :]).all(dim=-1)


def similarities(queries_BQE: torch.Tensor, text_BE: torch.Tensor) -> torch.Tensor:
    """Return (B, B), image i against text j: the greatest cosine over the image's queries.

    Both are unit vectors.
    """
    return torch.einsum("iqe,je->iqj", queries_BQE, text_BE).amax(dim=1)


def contrast_loss(
    similarity_BB: torch.Tensor, scale: torch.Tensor, equal_BB: torch.Tensor
) -> torch.Tensor:
    """Return the mean of both directions' cross-entropy against the own pair (ITC).

    Other pairs with an equal text or picture (``equal_BB``) are left out: neither right nor wrong.
    """
    own_BB = torch.eye(len(equal_BB), dtype=torch.bool, device=equal_BB.device)
    logits_BB = (scale * similarity_BB).masked_fill(equal_BB & ~own_BB, -torch.inf)
    classes_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (cross_entropy(logits_BB, classes_B) + cross_entropy(logits_BB.T, classes_B)) / 2


def draw_negatives(logits_BB: torch.Tensor, equal_BB: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Return int64 (B,): for each row a column that is no match; -1 where every column is.

    Drawn with probability softmax(logits) over the columns that are not equal, so that what looks
    alike is drawn more often (Li et al. 2021, section 3.2, "hard negatives"). Drawn on the CPU:
    the same numbers on every device, up to the rounding of the logits.
    """
    logits_BB = logits_BB.detach().float().cpu().masked_fill(equal_BB.cpu(), -torch.inf)
    has_B = ~equal_BB.cpu().all(dim=1)
    chances_BB = logits_BB.masked_fill(~has_B[:, None], 0.0).softmax(dim=1)
    generator = torch.Generator().manual_seed(seed)
    drawn_B = torch.multinomial(chances_BB, 1, generator=generator)[:, 0]
    return torch.where(has_B, drawn_B, -1).to(equal_BB.device)


class FirstStage(nn.Module):
    """A Q-Former with what its first training stage needs beside it.

    The Q-Former's projection to the language model takes no part and gets no gradient.
    ``image_projection``, ``text_projection``: to the space of the contrast, ``embedding_width``.
    ``matching``: two logits per query, no match and match, averaged over the queries.
    The generation's output layer is BERT's, tied to the token embedding, with one more class for
    the end of the text.
    """

    def __init__(self, qformer: QFormer, *, embedding_width: int = 256) -> None:
        super().__init__()
        width, vocab_size = qformer.config.hidden, qformer.config.vocab_size
        if not vocab_size:
            msg = "the first stage reads captions: build the Q-Former with vocab_size"
            raise SetupError(msg)
        self.qformer = qformer
        self.image_projection = nn.Linear(width, embedding_width)
        self.text_projection = nn.Linear(width, embedding_width)
        self.matching = nn.Linear(width, 2)
        self.before_words = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.end_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.word_bias = nn.Parameter(torch.zeros(vocab_size + 1))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def forward(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None,
        tokens_BT: torch.Tensor,
        tokens_mask_BT: torch.Tensor,
        *,
        seed: int | None = None,
        pictures_B: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses "itc", "itm" and "itg" of a batch of pairs; train on their sum.

        tokens_BT: the captions as ``caption_tokens`` gives them: padded at the right, without start
        and end tokens. seed: of the hard negatives; None = torch's global generator decides.
        pictures_B: any integer names of the pictures, where one batch may hold two captions of one
        picture: they are no negatives for each other, as equal captions are not.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=-math.log(_LEAST_TEMPERATURE))
        tokens_mask_BT = tokens_mask_BT.bool()
        equal_BB = equal_texts(tokens_BT, tokens_mask_BT)
        if pictures_B is not None:
            equal_BB = equal_BB | (pictures_B[:, None] == pictures_B[None, :])
        similarity_BB = self.similarity(features_BPV, mask_BP, tokens_BT, tokens_mask_BT)
        images_N, texts_N = self._pairs(
            similarity_BB, equal_BB, int(torch.randint(2**31, ())) if seed is None else seed
        )
        matched_N = (images_N == texts_N).long()
        logits_N2 = self.matching_logits(
            features_BPV[images_N],
            None if mask_BP is None else mask_BP[images_N],
            tokens_BT[texts_N],
            tokens_mask_BT[texts_N],
        )
        return {
            "itc": contrast_loss(similarity_BB, self.scale(), equal_BB),
            "itm": cross_entropy(logits_N2, matched_N),
            "itg": self.generation_loss(features_BPV, mask_BP, tokens_BT, tokens_mask_BT),
        }

    def scale(self) -> torch.Tensor:
        """The inverse temperature of the contrast; ``forward`` keeps it at 100 or less."""
        return self.log_scale.exp()

    def similarity(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None,
        tokens_BT: torch.Tensor,
        tokens_mask_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Return (B, B), a cosine per image and text: neither sees the other."""
        queries_BQD, text_BTD = self.qformer.encode(
            features_BPV, mask_BP, tokens_BT, tokens_mask_BT, sight="apart"
        )
        queries_BQE = normalize(self.image_projection(queries_BQD), dim=-1)
        return similarities(queries_BQE, normalize(self.text_projection(text_BTD[:, 0]), dim=-1))

    def matching_logits(
        self,
        features_NPV: torch.Tensor,
        mask_NP: torch.Tensor | None,
        tokens_NT: torch.Tensor,
        tokens_mask_NT: torch.Tensor,
    ) -> torch.Tensor:
        """Return (N, 2), no match and match, of pairs that see each other."""
        queries_NQD, _ = self.qformer.encode(
            features_NPV, mask_NP, tokens_NT, tokens_mask_NT, sight="both"
        )
        return self.matching(queries_NQD).mean(dim=1)

    def generation_loss(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None,
        tokens_BT: torch.Tensor,
        tokens_mask_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean cross-entropy of all tokens and ends of text, each from the image's
        queries and the tokens before it. A caption that is cut has no end."""
        _, text_BTD = self.qformer.encode(
            features_BPV, mask_BP, tokens_BT, tokens_mask_BT, sight="causal", start="decode"
        )
        vocab_size = self.qformer.config.vocab_size
        words_YD = self.qformer.token_embedding.weight[:vocab_size]
        outputs_YD = torch.cat([words_YD, self.end_embedding[None]])
        logits_BTY = self.before_words(text_BTD) @ outputs_YD.T + self.word_bias
        targets_BT = _targets(tokens_BT, tokens_mask_BT, vocab_size)[:, : text_BTD.shape[1]]
        return cross_entropy(
            logits_BTY.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=_IGNORED
        )

    def _pairs(
        self, similarity_BB: torch.Tensor, equal_BB: torch.Tensor, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and texts to be matched: all true pairs, for each text a wrong image, for
        each image a wrong text; fewer where all texts are equal."""
        logits_BB = self.scale() * similarity_BB
        image_B = draw_negatives(logits_BB.T, equal_BB, seed=2 * seed)
        text_B = draw_negatives(logits_BB, equal_BB, seed=2 * seed + 1)
        own_B = torch.arange(len(image_B), device=image_B.device)
        images_N = torch.cat([own_B, image_B[image_B >= 0], own_B[text_B >= 0]])
        texts_N = torch.cat([own_B, own_B[image_B >= 0], text_B[text_B >= 0]])
        return images_N, texts_N


def _targets(tokens_BT: torch.Tensor, mask_BT: torch.Tensor, end: int) -> torch.Tensor:
    """Return (B, T + 1): each token, then ``end``, then what does not count."""
    targets_BT = tokens_BT.masked_fill(~mask_BT, _IGNORED)
    targets_BT = nn.functional.pad(targets_BT, (0, 1), value=_IGNORED)
    return targets_BT.scatter(1, mask_BT.sum(dim=1, keepdim=True), end)
