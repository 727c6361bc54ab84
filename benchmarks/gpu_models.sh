# The models that gpu_step.sh and gpu_turns.sh time; to be sourced by them.

# What makes a model's benchmark: options of cleave's; after '/', the peer's.
options_of() {
  case $1 in
    gpt2:124m) echo "--batch 32 / --family gpt2 --layers 12 --hidden 768 --heads 12 --kv-heads 12" \
      "--ffn 3072 --vocab 50304 --sequence 1024 --batch 32" ;;
    gpt2:355m) echo "--batch 16 / --family gpt2 --layers 24 --hidden 1024 --heads 16 --kv-heads 16" \
      "--ffn 4096 --vocab 50304 --sequence 1024 --batch 16" ;;
    gpt2:1558m) echo "--batch 8 / --family gpt2 --layers 48 --hidden 1600 --heads 25 --kv-heads 25" \
      "--ffn 6400 --vocab 50304 --sequence 1024 --batch 8" ;;
    megatron:1.2b) echo "--batch 8 / --family gpt2 --layers 40 --hidden 1536 --heads 16" \
      "--kv-heads 16 --ffn 6144 --vocab 51200 --sequence 1024 --batch 8" ;;
    llama:1b) echo "--batch 4 --set sequence=2048 / --family llama --layers 16 --hidden 2048" \
      "--heads 32 --kv-heads 8 --ffn 8192 --vocab 128256 --sequence 2048 --batch 4" ;;
    qwen2.5:1.5b) echo "--batch 8 --set sequence=1024 / --family llama --layers 28 --hidden 1536" \
      "--heads 12 --kv-heads 2 --ffn 8960 --vocab 151936 --sequence 1024 --batch 8 --qkv-bias 1" \
      "--theta 1000000 --eps 1e-6" ;;
    llama:7b) echo "--batch 4 --set sequence=2048 --set layers=12 / --family llama --layers 12" \
      "--hidden 4096 --heads 32 --kv-heads 32 --ffn 11008 --vocab 32000 --sequence 2048 --batch 4" \
      "--tied 0" ;;
    mixtral:8x7b) echo "--batch 8 --set layers=4 hidden=2048 heads=16 kv_heads=4 ffn=7168" \
      "sequence=1024 capacity_factor=0 / --family llama --layers 4 --hidden 2048 --heads 16" \
      "--kv-heads 4 --ffn 7168 --vocab 32000 --sequence 1024 --batch 8 --tied 0 --theta 1000000" \
      "--experts 8 --top-k 2" ;;
    *)
      echo "$(basename "$0"): there is no model '$1': gpt2:124m gpt2:355m megatron:1.2b llama:1b" \
        "gpt2:1558m qwen2.5:1.5b llama:7b mixtral:8x7b" >&2
      exit 1
      ;;
  esac
}
