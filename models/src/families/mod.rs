//! Owns the families: one file each, which reads as the model's mathematics. A new one also needs its line in
//! [`crate::FAMILIES`].

pub(crate) mod apertus;
pub(crate) mod arcee;
pub(crate) mod cohere;
pub(crate) mod deepseek;
pub(crate) mod ernie4_5;
pub(crate) mod ernie4_5_moe;
pub(crate) mod exaone4;
pub(crate) mod gemma;
pub(crate) mod gemma4;
pub(crate) mod glm4;
pub(crate) mod glm4_moe;
pub(crate) mod gpt2;
pub(crate) mod gpt_neox;
pub(crate) mod gpt_oss;
pub(crate) mod granite;
pub(crate) mod hunyuan;
pub(crate) mod llama;
pub(crate) mod llama4;
pub(crate) mod minimax_m2;
pub(crate) mod mistral;
pub(crate) mod mixtral;
pub(crate) mod nemotron;
pub(crate) mod olmo;
pub(crate) mod olmoe;
pub(crate) mod phi;
pub(crate) mod phi3;
pub(crate) mod qwen2;
pub(crate) mod qwen2_moe;
pub(crate) mod qwen3;
pub(crate) mod seed_oss;
pub(crate) mod smollm3;
pub(crate) mod stablelm;
pub(crate) mod starcoder2;
