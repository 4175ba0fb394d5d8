package bpf

//go:generate go tool bpf2go -target bpfel -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" -type flow_key4 -type flow_key6 -type slot_ref -type flow -type owner -type next_hop -type meter -type interface -type counter -type cpu -type projection -type verdict -type flow_kind Turnstone turnstone.c
//go:generate go tool bpf2go -target bpfel -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" Reference reference.c
