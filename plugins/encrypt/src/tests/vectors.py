#!/usr/bin/env python3
"""Writes vectors.rs: images made from the documented format alone, by other code
(hmac and hashlib of Python, ciphers of the package `cryptography`)."""
import hashlib, hmac, struct
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

MASTER, IMAGE_ID, SALT, IV = b"0123456789abcdef0123456789abcdeX", bytes([1] * 16), bytes(range(32)), bytes(range(16))
CHUNK = dict(index=3, address=0x7F0000300000, raw_len=4096, aad=b"header", last=False)
TEXT, N_CHUNKS, GIVEN = b"the bytes of a page of the target", 4, 2
SUITES = {"aes-256-gcm": (1, 32), "chacha20-poly1305": (2, 32), "aes-128-cbc": (3, 16), "aes-192-cbc": (4, 24), "aes-256-cbc": (5, 32)}

def hkdf(length, info):
    prk, out, block, n = hmac.digest(SALT, MASTER, "sha256"), b"", b"", 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([n]), "sha256")
        out, n = out + block, n + 1
    return out[:length]

def image(name, number, key_len):
    prefix = b"menc" + bytes([1, number, GIVEN, 0])
    key = lambda purpose, length: hkdf(length, b"memcr encrypt 1\0" + purpose + b"\0" + name.encode() + b"\0" + prefix + IMAGE_ID)
    state = prefix + SALT + key(b"check", 16)
    state += hashlib.sha256(state + IMAGE_ID).digest()[:8]
    associated = struct.pack("<QQQQB", CHUNK["index"], CHUNK["address"], CHUNK["raw_len"], len(CHUNK["aad"]), CHUNK["last"]) + CHUNK["aad"]
    if name.endswith("cbc"):
        pad = 16 - len(TEXT) % 16
        cipher = Cipher(algorithms.AES(key(b"frame", key_len)), modes.CBC(IV)).encryptor()
        sealed = IV + cipher.update(TEXT + bytes([pad] * pad)) + cipher.finalize()
        frame = sealed + hmac.digest(key(b"mac", 32), associated + sealed, "sha256")
    else:
        nonce = bytes(3) + struct.pack(">QB", CHUNK["index"], CHUNK["last"])
        aead = {"aes-256-gcm": AESGCM, "chacha20-poly1305": ChaCha20Poly1305}[name]
        frame = aead(key(b"frame", key_len)).encrypt(nonce, TEXT, associated)
    return state, frame, hmac.digest(key(b"trailer", 32), struct.pack("<Q", N_CHUNKS), "sha256")

print("//! Made by vectors.py, from the documented format and by other code than the stage's.\n")
print("/// Cipher, state, frame and trailer of an image, in hexadecimal digits.")
print("pub(super) const VECTORS: &[[&str; 4]] = &[")
for name, (number, key_len) in SUITES.items():
    print("    [")
    for text in [name] + [part.hex() for part in image(name, number, key_len)]:
        print(f'        "{text}",')
    print("    ],")
print("];")
