//! The conformance suite with every cipher, and with a key that a fresh handle has too.

macro_rules! with_cipher {
    ($($module:ident $cipher:literal)*) => {$(
        mod $module {
            use crate::stage_table;
            memcr_plugin_api::conformance!(|suite| suite
                .param("cipher", $cipher)
                .file_param("key_file", &[0x5a; 32]));
        }
    )*};
}

with_cipher! {
    aes_256_gcm "aes-256-gcm"
    chacha20_poly1305 "chacha20-poly1305"
    aes_128_cbc "aes-128-cbc"
    aes_192_cbc "aes-192-cbc"
    aes_256_cbc "aes-256-cbc"
}
