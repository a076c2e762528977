/* Runs one call of the native library on another, emulated system, in the memory of the process that tests it.
 *
 * The file named by the argument has, in int64: which function (0: kba_run, 1: block_run_part), its `what`, the
 * address of its call, and the number of pieces of memory; then, for each piece, its address, its size and its bytes.
 * Each piece is put at the very address that it has in the other process, so that the call's pointers hold. What the
 * function returns and then all pieces are written to the same file.
 */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
#define MAP(page) VirtualAlloc(page, PAGE, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE)
#else
#include <sys/mman.h>
#define MAP(page) mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
#endif

int kba_run(const void *call, int what, const char *name);
int block_run_part(const void *call, int what, const char *name);

enum { PAGE = 65536 }; /* the largest there is */

static void need(int fine, const char *what)
{
    if (fine) return;
    perror(what);
    exit(3);
}

/* Maps the pages of a piece that no piece before it has mapped; nothing else is overwritten. */
static void provide(uintptr_t address, size_t size)
{
    static uintptr_t mapped[1 << 16];
    static int count;
    for (uintptr_t page = address / PAGE * PAGE; page < address + size; page += PAGE) {
        int known = 0;
        for (int i = 0; i < count; i++) known |= mapped[i] == page;
        if (known) continue;
        need(MAP((void *)page) == (void *)page && count < 1 << 16, "memory where the other process has its own");
        mapped[count++] = page;
    }
}

int main(int count, char **arguments)
{
    (void)count;
    FILE *file = fopen(arguments[1], "r+b");
    need(file != NULL, arguments[1]);
    int64_t head[4];
    need(fread(head, sizeof head, 1, file) == 1, "head");
    int64_t(*piece)[2] = malloc((size_t)head[3] * sizeof *piece);
    for (int64_t i = 0; i < head[3]; i++) {
        need(fread(piece[i], sizeof *piece, 1, file) == 1, "piece");
        provide((uintptr_t)piece[i][0], (size_t)piece[i][1]);
        need(fread((void *)piece[i][0], 1, (size_t)piece[i][1], file) == (size_t)piece[i][1], "bytes");
    }
    const void *call = (const void *)head[2];
    const int64_t failed = head[0] ? block_run_part(call, (int)head[1], "plain") : kba_run(call, (int)head[1], "plain");
    rewind(file);
    need(fwrite(&failed, sizeof failed, 1, file) == 1, "write");
    for (int64_t i = 0; i < head[3]; i++)
        need(fwrite((void *)piece[i][0], 1, (size_t)piece[i][1], file) == (size_t)piece[i][1], "write");
    need(fclose(file) == 0, "close");
    return 0;
}
