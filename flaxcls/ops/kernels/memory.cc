// Keeps the large blocks of memory that XLA frees for when it asks again.
//
// XLA takes one block for all temporary buffers of a program at each call, gigabytes for a ResNet-50,
// and gives it back. The C library hands that to the kernel at once, so that the next step meets a
// page fault wherever it writes, which was up to a fifth of its time; told to keep all that is freed,
// it loses the block to small requests and takes another beside it, again and again. XLA cannot be
// told of another allocator, so its calls of the C library's two functions are led here, in the table
// in which the linker has put their addresses. All blocks are still the C library's.

#include <elf.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "common.h"

namespace {

constexpr size_t kLarge = 32 << 20;  // Bytes; the C library takes what is larger from the kernel.

struct Block {
  void* data;
  size_t size;

  // Whether it does for a request, and is not much larger.
  bool suits(size_t alignment, size_t wanted) const {
    return size >= wanted && size - wanted <= wanted / 8 &&
           reinterpret_cast<uintptr_t>(data) % alignment == 0;
  }
};

class Blocks {
 public:
  int allocate(void** out, size_t alignment, size_t size) {
    if (size < kLarge) return posix_memalign(out, alignment, size);
    std::unique_lock<std::mutex> guard(mutex_);
    const auto find = [=](std::vector<Block>& in) {
      return std::find_if(in.begin(), in.end(),
                          [=](const Block& block) { return block.suits(alignment, size); });
    };
    // One step's block is given back just after the next step has asked for its own.
    if (find(kept_) == kept_.end() && find(live_) != live_.end()) {
      released_.wait_for(guard, kPatience, [&] { return find(kept_) != kept_.end(); });
    }
    if (auto block = find(kept_); block != kept_.end()) {
      live_.push_back(*block);
      kept_.erase(block);
    } else {
      // What is kept does not suit the programs that run now.
      for (const Block& other : kept_) std::free(other.data);
      kept_.clear();
      void* data;
      if (const int error = posix_memalign(&data, alignment, size)) return error;
      flaxcls::expect_writes(data, size);
      live_.push_back({data, malloc_usable_size(data)});
    }
    *out = live_.back().data;
    most_ = std::max(most_, bytes(live_));
    return 0;
  }

  void release(void* data) {
    if (!data || malloc_usable_size(data) < kLarge || !keep(data)) std::free(data);
  }

 private:
  static size_t bytes(const std::vector<Block>& blocks) {
    size_t sum = 0;
    for (const Block& block : blocks) sum += block.size;
    return sum;
  }

  // Keeps a block, unless the process would then hold more than it has ever needed at once.
  bool keep(void* data) {
    std::lock_guard<std::mutex> guard(mutex_);
    const auto found = std::find_if(live_.begin(), live_.end(),
                                    [=](const Block& block) { return block.data == data; });
    if (found == live_.end()) return false;
    const Block block = *found;
    live_.erase(found);
    if (bytes(live_) + bytes(kept_) + block.size > most_) return false;
    kept_.push_back(block);
    released_.notify_all();
    return true;
  }

  static constexpr std::chrono::milliseconds kPatience{10};
  std::mutex mutex_;
  std::condition_variable released_;
  std::vector<Block> live_, kept_;  // Large ones in use, and those that were freed.
  size_t most_ = 0;                 // Bytes in use at once, at most.
};

Blocks& blocks() {
  static Blocks* blocks = new Blocks;  // Used until the process ends.
  return *blocks;
}

int allocate(void** out, size_t alignment, size_t size) {
  return blocks().allocate(out, alignment, size);
}

void release(void* block) { blocks().release(block); }

// Writes an address into the linker's table, which may be read-only by now.
void replace(uintptr_t slot, void* address) {
  const uintptr_t page = sysconf(_SC_PAGESIZE), first = slot & ~(page - 1);
  if (mprotect(reinterpret_cast<void*>(first), slot + sizeof(void*) - first,
               PROT_READ | PROT_WRITE) == 0) {
    *reinterpret_cast<void**>(slot) = address;
  }
}

int replace_in_jaxlib(dl_phdr_info* info, size_t, void* replaced) {
  if (!std::strstr(info->dlpi_name, "libjax_common")) return 0;
  const ElfW(Dyn)* dynamic = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type == PT_DYNAMIC) {
      dynamic = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    }
  }
  if (!dynamic) return 0;
  const ElfW(Sym)* symbols = nullptr;
  const char* names = nullptr;
  struct {
    const ElfW(Rela)* first = nullptr;
    size_t bytes = 0;
  } tables[2];
  for (; dynamic->d_tag != DT_NULL; ++dynamic) {
    const auto pointer = dynamic->d_un.d_ptr;
    switch (dynamic->d_tag) {
      case DT_SYMTAB: symbols = reinterpret_cast<const ElfW(Sym)*>(pointer); break;
      case DT_STRTAB: names = reinterpret_cast<const char*>(pointer); break;
      case DT_RELA: tables[0].first = reinterpret_cast<const ElfW(Rela)*>(pointer); break;
      case DT_RELASZ: tables[0].bytes = dynamic->d_un.d_val; break;
      case DT_JMPREL: tables[1].first = reinterpret_cast<const ElfW(Rela)*>(pointer); break;
      case DT_PLTRELSZ: tables[1].bytes = dynamic->d_un.d_val; break;
    }
  }
  for (const auto& table : tables) {
    for (size_t i = 0; i < table.bytes / sizeof(ElfW(Rela)); ++i) {
      const ElfW(Rela)& entry = table.first[i];
      const auto symbol = ELF64_R_SYM(entry.r_info);
      if (!symbol) continue;
      const char* name = names + symbols[symbol].st_name;
      const uintptr_t slot = info->dlpi_addr + entry.r_offset;
      if (!std::strcmp(name, "posix_memalign")) {
        replace(slot, reinterpret_cast<void*>(allocate));
        ++*static_cast<int*>(replaced);
      } else if (!std::strcmp(name, "free")) {
        replace(slot, reinterpret_cast<void*>(release));
      }
    }
  }
  return 0;
}

}  // namespace

// Leads jaxlib's requests of large blocks here; returns whether its calls were found.
extern "C" int flaxcls_keep_large_blocks() {
  int replaced = 0;
  dl_iterate_phdr(replace_in_jaxlib, &replaced);
  return replaced > 0;
}
