extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }
