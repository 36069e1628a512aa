/* An emulated capability of a network card: to be loaded before libibverbs, it takes dma-bufs of the emulated GPU, which the software
 * device of Linux refuses. What was asked for is done by the device itself: the pages behind the dma-buf are mapped and registered
 * under the address that was wanted, so that packets of RDMA carry them from and to the GPU's memory. It refuses what Linux
 * refuses of every card: windows on such memory, and an address that lies otherwise in its page than the offset.
 *
 * CARD_REFUSES_DMA_BUF=N has the N-th call and all after it refused as by a card that cannot.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define REGIONS_MAX 1024
#define PAGE 4096UL

struct mapped { struct ibv_mr *mr; void *at; size_t size; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapped regions[REGIONS_MAX];
static unsigned long calls;

/* For tests: how often a dma-buf was to be registered. */
unsigned long card_dma_bufs(void) { return calls; }

/* The file of the pages behind a dma-buf, which the emulated GPU knows; a dma-buf of udmabuf itself cannot be pinned by its mapping. */
static int pages_of(int fd, off_t *offset)
{
    struct stat status;
    void *gpu = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    int (*memory_of)(ino_t, off_t *) = gpu ? (int (*)(ino_t, off_t *))dlsym(gpu, "emulated_memory_of") : NULL;
    return memory_of && !fstat(fd, &status) ? memory_of(status.st_ino, offset) : -1;
}

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access)
{
    const char *refuses = getenv("CARD_REFUSES_DMA_BUF");
    off_t begins = 0;
    int pages = pages_of(fd, &begins);
    pthread_mutex_lock(&lock);
    calls++;
    pthread_mutex_unlock(&lock);
    errno = EOPNOTSUPP;
    if (refuses && calls >= strtoul(refuses, NULL, 10)) return NULL;
    errno = EINVAL;
    if (access & ~(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) return NULL;
    if (offset % PAGE != iova % PAGE || pages < 0) return NULL;
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, pages, begins + (off_t)offset);
    if (at == MAP_FAILED) return NULL;
    struct ibv_mr *mr = ibv_reg_mr_iova2(pd, at, length, iova, (unsigned int)access);
    pthread_mutex_lock(&lock);
    for (int i = 0; mr && i < REGIONS_MAX; i++)
        if (!regions[i].mr) { regions[i] = (struct mapped){mr, at, length}; break; }
    pthread_mutex_unlock(&lock);
    if (!mr) munmap(at, length);
    return mr;
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
    int (*original)(struct ibv_mr *) = (int (*)(struct ibv_mr *))dlvsym(RTLD_NEXT, "ibv_dereg_mr", "IBVERBS_1.1");
    int failed = original(mr);
    pthread_mutex_lock(&lock);
    for (int i = 0; !failed && i < REGIONS_MAX; i++)
        if (regions[i].mr == mr) { munmap(regions[i].at, regions[i].size); regions[i].mr = NULL; }
    pthread_mutex_unlock(&lock);
    return failed;
}
