"""The same as 'lzero-kvcache bench'."""
from lzero_kvcache.cli import bench

if __name__ == '__main__':
    bench()
