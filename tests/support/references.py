"""
Dense references: compute all that SeNER computes with T x T and N x N tensors, whatever the cost. Equations have the
numbers of modeling_sener.py.

Legend: B batch, T tokens, N words, d hidden size, H heads, D head size, w window (one-sided), W band columns, b those
before the diagonal, C span channels, R labels, p biaffine size, P entries of the relative position table.

With `triangles="both"` (the paper's model) b = w and W = 2w+1, with "upper" b = 0 and W = w+1.

Weights come as state dicts: Hugging Face names for encoders, this project's names for the head. Every function is
plain torch, differentiable, and computes in the dtype it is given, float64 included. The head works on one text at a
time, so that padding cannot leak by construction.
"""

import math

import torch
import torch.nn.functional as F


# ----------------------------------------------------------------------------------------------------------- attention


def log_bucket_position(distance, position_buckets, max_positions):
    """Log-bucket b(r) of integer distances r, any shape: r itself up to half the buckets, logarithmic beyond.

    In float32 whatever the model's dtype, as the pretrained tables were made: `ceil` is sensitive at bucket borders.
    """
    middle = position_buckets // 2
    steps = torch.log(distance.abs().clamp(min=1).float() / middle) / torch.log(
        torch.tensor((max_positions - 1) / middle)
    )
    far = (middle + torch.ceil(steps * (middle - 1))).long()
    return torch.where(distance.abs() <= middle, distance, far * distance.sign())


def distances(T):
    """(T, T): i - j."""
    positions = torch.arange(T)
    return positions[:, None] - positions[None, :]


def attention_mask_TT(attention_mask, kind="arrow", window=None):
    """Whether query i attends to key j (eq. 1): (B, T, T) bool. `kind` is "arrow", "sliding_window" or "full"."""
    T = attention_mask.shape[1]
    near = torch.ones(T, T, dtype=torch.bool) if kind == "full" else distances(T).abs() <= window
    if kind == "arrow":
        near = near.clone()
        near[0, :] = True
        near[:, 0] = True
    return near[None] & attention_mask.bool()[:, None, :]


def scale_cls_row(scores_BHTT, attention_mask):
    """LogN-Scaling (eq. 2): multiply [CLS]'s scores by log(L) / log(512), L the tokens of that text."""
    length_B = attention_mask.sum(1).to(scores_BHTT.dtype)
    factor_BT = torch.ones(attention_mask.shape, dtype=scores_BHTT.dtype)
    factor_BT[:, 0] = torch.log(length_B) / math.log(512)
    return scores_BHTT * factor_BT[:, None, :, None]


def weighted_values(scores_BHTT, v_BHTD, seen_BTT):
    """softmax over the seen keys, times the values: (B, H, T, D). A query that sees no key gives 0."""
    probabilities = scores_BHTT.masked_fill(~seen_BTT[:, None], -torch.inf).softmax(-1)
    return probabilities.masked_fill(~seen_BTT.any(-1)[:, None, :, None], 0.0) @ v_BHTD


def generic_attention(q, k, v, attention_mask, scaling, kind="arrow", window=None, log_n=False):
    """softmax(q k^T * scaling) v under the mask of `kind`. q, k, v (B, H, T, D) -> (B, H, T, D)."""
    scores = q @ k.transpose(-1, -2) * scaling
    if log_n:
        scores = scale_cls_row(scores, attention_mask)
    return weighted_values(scores, v, attention_mask_TT(attention_mask, kind, window))


def disentangled_attention(
    q, k, v, KR, QR, attention_mask, position_buckets, max_positions, kind="arrow", window=None, log_n=False
):
    """DeBERTa's attention (eq. 3): scores (q_i.k_j + q_i.KR[b(i-j)] + k_j.QR[b(i-j)]) / sqrt(D * number of terms).

    q, k, v (B, H, T, D); KR, QR (H, P, D), or None if the model lacks that term -> (B, H, T, D).
    """
    T, D = q.shape[-2:]
    entry = distances(T)
    if position_buckets > 0:
        entry = log_bucket_position(entry, position_buckets, max_positions)
    half = position_buckets if position_buckets > 0 else max_positions
    entry = (entry + half).clamp(0, 2 * half - 1)
    scores = q @ k.transpose(-1, -2)
    if KR is not None:
        scores = scores + torch.einsum("bhid,hijd->bhij", q, KR[:, entry])
    if QR is not None:
        scores = scores + torch.einsum("bhjd,hijd->bhij", k, QR[:, entry])
    scores = scores / math.sqrt(D * (1 + (KR is not None) + (QR is not None)))
    if log_n:
        scores = scale_cls_row(scores, attention_mask)
    return weighted_values(scores, v, attention_mask_TT(attention_mask, kind, window))


# ------------------------------------------------------------------------------------------------------------- DeBERTa


def split_heads(x, heads):
    """(..., T, H * D) -> (..., H, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state, name, x, eps):
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"], eps)


def deberta_embeddings(state, config, input_ids, attention_mask):
    """Word (and position, and segment) embeddings, projected, normed, 0 at padding: (B, T, d)."""
    x = F.embedding(input_ids, state["embeddings.word_embeddings.weight"])
    if config.position_biased_input:
        table = state["embeddings.position_embeddings.weight"]
        x = x + table[torch.arange(x.shape[1]) % len(table)]
    if config.type_vocab_size > 0:
        x = x + state["embeddings.token_type_embeddings.weight"][0]
    if "embeddings.embed_proj.weight" in state:
        x = linear(state, "embeddings.embed_proj", x)
    x = layer_norm(state, "embeddings.LayerNorm", x, config.layer_norm_eps)
    return x * attention_mask[..., None].to(x.dtype)


def deberta_relative_tables(state, config, prefix):
    """KR and QR (H, P, D) of one layer; None if `pos_att_type` lacks the term."""
    if not config.relative_attention:
        return None, None
    relative = state["encoder.rel_embeddings.weight"]
    if "layer_norm" in (config.norm_rel_ebd or ""):
        relative = layer_norm(state, "encoder.LayerNorm", relative, config.layer_norm_eps)
    key, query = ("key_proj", "query_proj") if config.share_att_key else ("pos_key_proj", "pos_query_proj")
    heads = config.num_attention_heads
    KR = split_heads(linear(state, prefix + key, relative), heads) if "c2p" in config.pos_att_type else None
    QR = split_heads(linear(state, prefix + query, relative), heads) if "p2c" in config.pos_att_type else None
    return KR, QR


def deberta_convolution(state, config, embedded, x, attention_mask):
    """The convolution that DeBERTa-v2-xlarge joins to its first layer's output."""
    weight, bias = state["encoder.conv.conv.weight"], state["encoder.conv.conv.bias"]
    groups = getattr(config, "conv_groups", 1)
    y = F.conv1d(embedded.transpose(1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=groups).transpose(1, 2)
    real = attention_mask[..., None].to(x.dtype)
    y = {"tanh": torch.tanh, "gelu": F.gelu}[getattr(config, "conv_act", "tanh")](y * real)
    return layer_norm(state, "encoder.conv.LayerNorm", x + y, config.layer_norm_eps) * real


def deberta_encoder(state, config, input_ids, attention_mask, kind="arrow", window=None, log_n=False):
    """The whole DeBERTa-v2/v3 encoder with dense attention; `state` has Hugging Face names. Returns (B, T, d)."""
    x = embedded = deberta_embeddings(state, config, input_ids, attention_mask)
    max_positions = config.max_relative_positions
    if max_positions < 1:
        max_positions = config.max_position_embeddings
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}."
        own = layer + "attention.self."
        q, k, v = (
            split_heads(linear(state, own + name, x), config.num_attention_heads)
            for name in ("query_proj", "key_proj", "value_proj")
        )
        KR, QR = deberta_relative_tables(state, config, own)
        context = disentangled_attention(
            q, k, v, KR, QR, attention_mask, config.position_buckets, max_positions, kind, window, log_n
        )
        context = linear(state, layer + "attention.output.dense", context.transpose(1, 2).flatten(2))
        x = layer_norm(state, layer + "attention.output.LayerNorm", x + context, config.layer_norm_eps)
        inner = F.gelu(linear(state, layer + "intermediate.dense", x))
        inner = linear(state, layer + "output.dense", inner)
        x = layer_norm(state, layer + "output.LayerNorm", x + inner, config.layer_norm_eps)
        if number == 0 and "encoder.conv.conv.weight" in state:
            x = deberta_convolution(state, config, embedded, x, attention_mask)
    return x


# ----------------------------------------------------------------------------------------------------- band and square


def before(w, triangles):
    """b, the columns before the diagonal."""
    return w if triangles == "both" else 0


def valid_square(N, w, triangles="both"):
    """(N, N) bool: the pairs that the band holds, -b <= j - i <= w."""
    return (distances(N) <= before(w, triangles)) & (-distances(N) <= w)


def square_to_band(square, w, triangles="both"):
    """(N, N, ...) -> (N, W, ...), cell by cell: (i, k) is the pair (i, i + k - b); 0 where there is none."""
    N, b = square.shape[0], before(w, triangles)
    zero = torch.zeros_like(square[0, 0])
    rows = [
        torch.stack([square[i, i + k - b] if 0 <= i + k - b < N else zero for k in range(b + w + 1)]) for i in range(N)
    ]
    return torch.stack(rows)


def band_to_square(band, w, triangles="both"):
    """(N, W, ...) -> (N, N, ...), cell by cell; 0 outside the band."""
    N, b = band.shape[0], before(w, triangles)
    zero = torch.zeros_like(band[0, 0])
    rows = [torch.stack([band[i, j - i + b] if -b <= j - i <= w else zero for j in range(N)]) for i in range(N)]
    return torch.stack(rows)


def transpose_band(band, w):
    """T(Z)[j, m] = Z[j + m - w, W - 1 - m], 0 where that row does not exist."""
    N, W = band.shape[:2]
    zero = torch.zeros_like(band[0, 0])
    rows = [
        torch.stack([band[j + m - w, W - 1 - m] if 0 <= j + m - w < N else zero for m in range(W)]) for j in range(N)
    ]
    return torch.stack(rows)


def valid_band(word_counts, N, w, triangles="both"):
    """(B, N, W) bool: cells whose two words are both words of the text."""
    b = before(w, triangles)
    cells = torch.zeros(len(word_counts), N, b + w + 1, dtype=torch.bool)
    for text, count in enumerate(word_counts):
        for i in range(int(count)):
            for k in range(b + w + 1):
                cells[text, i, k] = 0 <= i + k - b < int(count)
    return cells


def band_labels(spans, N, w, R, triangles="both"):
    """
    (N, W, R) uint8: 1 in the cell (i, j) of each span (start, end exclusive, label), i its first word and j its last,
    and in the cell (j, i).
    """
    b = before(w, triangles)
    labels = torch.zeros(N, b + w + 1, R, dtype=torch.uint8)
    for start, end, label in spans:
        i, j = start, end - 1
        labels[i, j - i + b, label] = 1
        if triangles == "both":
            labels[j, i - j + b, label] = 1
    return labels


# ---------------------------------------------------------------------------------------------------------------- head


def pool_words(hidden_states_Td, word_index_T):
    """Word states (N, d): elementwise maximum over a word's tokens (eq. 4). `word_index_T` numbers words from 1."""
    words = range(1, int(word_index_T.max()) + 1)
    return torch.stack([hidden_states_Td[word_index_T == word].max(0).values for word in words])


def biaffine_square(state, x_Nd):
    """S (N, N, C) (eq. 5): S_c(i, j) = a_i^T U_c e_j + W_c [a_i ; e_j], a and e with a 1 appended. No dropout."""
    one = torch.ones_like(x_Nd[:, :1])
    a = torch.cat([F.gelu(linear(state, "biaffine.start", x_Nd)), one], -1)
    e = torch.cat([F.gelu(linear(state, "biaffine.end", x_Nd)), one], -1)
    N = len(x_Nd)
    pairs = torch.cat([a[:, None].expand(N, N, -1), e[None].expand(N, N, -1)], -1)
    products = torch.einsum("ip,cpq,jq->ijc", a, state["biaffine.bilinear.weight"], e)
    return products + F.linear(pairs, state["biaffine.linear.weight"])


def rotate(x, position):
    """Rotary embedding, interleaved pairs, base 10000. x (..., C), position (...) -> (..., C)."""
    C = x.shape[-1]
    frequency = 10000.0 ** (-torch.arange(0, C, 2, dtype=x.dtype) / C)
    angle = position[..., None].to(x.dtype) * frequency
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = [even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()]
    return torch.stack(turned, -1).flatten(-2)


def attend_rows(state, name, Z, valid_NN):
    """Let each row i of the square attend over its valid cells (eq. 7), one head. Z (N, N, C) -> (N, N, C)."""
    N, _, C = Z.shape
    column = -distances(N)  # any origin of rotary positions will do: only their differences matter
    q, k, v = linear(state, name, Z).chunk(3, -1)
    scores = torch.einsum("ijc,ilc->ijl", rotate(q, column), rotate(k, column)) / math.sqrt(C)
    scores = scores.masked_fill(~valid_NN[:, None, :], -torch.inf)
    return torch.einsum("ijl,ilc->ijc", scores.softmax(-1), v)


def band_convolution(weight, Z, valid_NN):
    """3 x 3 convolution over the (i, k) grid of the band, written on the square. Z (N, N, C) -> (N, N, C).

    The neighbour (i + di, k + dk) of a cell is the pair (i + di, j + di + dk); outside the band or the square it is 0.
    """
    N = len(Z)
    Z = Z * valid_NN[..., None]
    out = torch.zeros_like(Z)
    padded = F.pad(Z, (0, 0, 2, 2, 1, 1))
    for di in (-1, 0, 1):
        for dk in (-1, 0, 1):
            rows, columns = slice(1 + di, 1 + di + N), slice(2 + di + dk, 2 + di + dk + N)
            out = out + F.linear(padded[rows, columns], weight[:, :, di + 1, dk + 1])
    return out


def convolution_block(state, block, Z1, w, triangles="both"):
    """LN2(Z1 + Conv(GELU(Conv(Z1)))) (eq. 9)."""
    valid = valid_square(len(Z1), w, triangles)
    inner = F.gelu(band_convolution(state[f"{block}.conv1.weight"], Z1, valid))
    inner = band_convolution(state[f"{block}.conv2.weight"], inner, valid)
    return layer_norm(state, f"{block}.conv_norm", Z1 + inner, 1e-5)


def bispa_block(state, block, Z, w, vertical_readout, triangles="both"):
    """One BiSPA block (eq. 6 to 9) on the square, (N, N, C) -> (N, N, C). Cells outside the band mean nothing."""
    valid = valid_square(len(Z), w, triangles)
    if triangles == "both":
        upper = (distances(len(Z)) <= 0).long()  # i <= j, that is k >= w
        Z = Z + state[f"{block}.triangle.weight"][upper]
    Zh = attend_rows(state, f"{block}.horizontal", Z, valid)
    Zv = attend_rows(state, f"{block}.vertical", Z.transpose(0, 1), valid.T)
    if vertical_readout == "transposed":
        Zv = Zv.transpose(0, 1)
    Z1 = layer_norm(state, f"{block}.norm", Z + linear(state, f"{block}.dense", torch.cat([Zh, Zv], -1)), 1e-5)
    return convolution_block(state, block, Z1, w, triangles)


def logits_square(state, x_Nd, w, interaction="bispa", vertical_readout="transposed", triangles="both"):
    """Logits (N, N, R) of one text from its word states (N, d). `interaction` is "bispa", "cnn" or "none"."""
    S = Z = biaffine_square(state, x_Nd)
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    for number in sorted(blocks) if interaction != "none" else ():
        if interaction == "cnn":
            Z = convolution_block(state, f"blocks.{number}", Z, w, triangles)
        else:
            Z = bispa_block(state, f"blocks.{number}", Z, w, vertical_readout, triangles)
    return linear(state, "classifier", Z + S)


def head_logits(
    state, hidden_states, word_index, w, interaction="bispa", vertical_readout="transposed", triangles="both"
):
    """
    From the encoder's states to the logits of the band: (B, T, d), (B, T) -> (B, N, W, R); invalid cells are 0.

    With w None, w = N - 1.
    """
    N = int(word_index.max())
    w = N - 1 if w is None else w
    bands = []
    for states_Td, index_T in zip(hidden_states, word_index, strict=True):
        square = logits_square(state, pool_words(states_Td, index_T), w, interaction, vertical_readout, triangles)
        band = square_to_band(square, w, triangles)
        bands.append(F.pad(band, (0, 0, 0, 0, 0, N - len(band))))
    return torch.stack(bands)


def span_loss(logits, labels, word_counts, w, triangles="both"):
    """Binary cross-entropy (eq. 11) by definition, summed over valid cells and labels, averaged over the batch."""
    valid = valid_band(word_counts, logits.shape[1], w, triangles)[..., None]
    y = labels.to(logits.dtype)
    cells = -(y * F.logsigmoid(logits) + (1 - y) * F.logsigmoid(-logits))
    return (cells * valid).sum() / len(logits)
