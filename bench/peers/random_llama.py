#!/usr/bin/env python3
"""Writes a GGUF file of a given Llama shape with random bf16 weights and the tokenizer of an existing GGUF file, so that
servers can be compared at a size nobody has to download. Python 3.9 or later, standard library only.

  random_llama.py --shape 1b LIKE.gguf OUT.gguf
  llama-quantize OUT.gguf OUT-Q8_0.gguf Q8_0        # the same weights, smaller

The vocabulary is padded with unused tokens to the shape's. Weights are uniform in sign and mantissa, with exponents that
keep activations in range; what a model of random numbers says means nothing, only its speed does.
"""
import argparse
import os
import struct

SHAPES = {  # layers, hidden, inner, heads, kv_heads, head_dim, vocabulary
    "1b": (16, 2048, 8192, 32, 8, 64, 128256),
    "8b": (32, 4096, 14336, 32, 8, 128, 128256),
}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
U32, F32, STRING, ARRAY = 4, 6, 8, 9
TYPE_F32, TYPE_BF16, ALIGNMENT = 0, 30, 32


def read(f, form):
    return struct.unpack("<" + form, f.read(struct.calcsize("<" + form)))


def string(text):
    return struct.pack("<Q", len(text)) + text


def value_bytes(f, kind):
    """The stored bytes of a value; arrays as (element type, list of their elements' bytes)."""
    if kind == STRING:
        return string(f.read(read(f, "Q")[0]))
    if kind == ARRAY:
        of, count = read(f, "IQ")
        return of, [value_bytes(f, of) for _ in range(count)]
    return f.read(SIZES[kind])


def tokenizer_of(path):
    """Every `tokenizer.*` entry of a GGUF file: {key: (type, value)}."""
    with open(path, "rb") as f:
        magic, version, _, keys = read(f, "4sIQQ")
        if magic != b"GGUF" or version < 2:
            raise SystemExit(f"{path} is not a GGUF file of version 2 or 3")
        entries = {}
        for _ in range(keys):
            key = f.read(read(f, "Q")[0])
            kind = read(f, "I")[0]
            entries[key] = kind, value_bytes(f, kind)
    return {k: v for k, v in entries.items() if k.startswith(b"tokenizer.")}


def pad(tokenizer, vocab):
    """Unused tokens up to the vocabulary."""
    kind, (of, tokens) = tokenizer[b"tokenizer.ggml.tokens"]
    missing = vocab - len(tokens)
    tokens += [string(b"<|unused_%d|>" % i) for i in range(missing)]
    if b"tokenizer.ggml.token_type" in tokenizer:
        tokenizer[b"tokenizer.ggml.token_type"][1][1].extend([struct.pack("<i", 5)] * missing)
    if b"tokenizer.ggml.scores" in tokenizer:
        tokenizer[b"tokenizer.ggml.scores"][1][1].extend([struct.pack("<f", 0.0)] * missing)
    return tokenizer


# The high byte of a bf16: a sign and an exponent of 2^-7 to 2^-4, whichever random byte it comes from.
HIGH = bytes((b & 0x80) | (0x3C + (b & 1)) for b in range(256))


def random_bf16(count):
    data = bytearray(2 * count)
    data[0::2] = os.urandom(count)
    data[1::2] = os.urandom(count).translate(HIGH)
    return bytes(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("like", metavar="LIKE.gguf")
    parser.add_argument("out", metavar="OUT.gguf")
    args = parser.parse_args()
    layers, hidden, inner, heads, kv_heads, head_dim, vocab = SHAPES[args.shape]

    entries = {b"general.architecture": (STRING, string(b"llama")), b"general.name": (STRING, string(b"random " + args.shape.encode())),
               b"llama.rope.freq_base": (F32, struct.pack("<f", 500000.0)), b"llama.attention.layer_norm_rms_epsilon": (F32, struct.pack("<f", 1e-5))}
    for key, number in {"block_count": layers, "embedding_length": hidden, "feed_forward_length": inner, "attention.head_count": heads,
                        "attention.head_count_kv": kv_heads, "rope.dimension_count": head_dim, "context_length": 131072, "vocab_size": vocab}.items():
        entries[b"llama." + key.encode()] = U32, struct.pack("<I", number)
    entries[b"general.file_type"] = U32, struct.pack("<I", 32)
    entries.update(pad(tokenizer_of(args.like), vocab))

    # Dimensions are written innermost first.
    tensors = [("token_embd.weight", (hidden, vocab)), ("output_norm.weight", (hidden,))]
    for i in range(layers):
        kv = kv_heads * head_dim
        for name, dims in {"attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, heads * head_dim), "attn_k": (hidden, kv), "attn_v": (hidden, kv),
                           "attn_output": (heads * head_dim, hidden), "ffn_gate": (hidden, inner), "ffn_up": (hidden, inner), "ffn_down": (inner, hidden)}.items():
            tensors.append((f"blk.{i}.{name}.weight", dims))

    with open(args.out, "wb") as f:
        f.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)))
        for key, (kind, value) in entries.items():
            f.write(string(key) + struct.pack("<I", kind))
            f.write(value if kind != ARRAY else struct.pack("<IQ", value[0], len(value[1])) + b"".join(value[1]))
        offset = 0
        for name, dims in tensors:
            count = dims[0] * (dims[1] if len(dims) > 1 else 1)
            kind = TYPE_BF16 if len(dims) > 1 else TYPE_F32
            f.write(string(name.encode()) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
            offset += -(-count * (2 if kind == TYPE_BF16 else 4) // ALIGNMENT) * ALIGNMENT
        for name, dims in tensors:
            f.write(b"\0" * (-f.tell() % ALIGNMENT))
            f.write(random_bf16(dims[0] * dims[1]) if len(dims) > 1 else struct.pack("<f", 1.0) * dims[0])
        f.write(b"\0" * (-f.tell() % ALIGNMENT))
    print(f"{args.out}: {os.path.getsize(args.out) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
