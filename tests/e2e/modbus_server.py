"""A stock pymodbus server whose holding register N holds 3 N: ``modbus_server PORT``."""

import sys

from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import StartTcpServer

REGISTERS = 2000


def main() -> None:
    """Serve until the process is ended."""
    block = ModbusSequentialDataBlock(1, [3 * number for number in range(REGISTERS)])
    context = ModbusServerContext(devices=ModbusDeviceContext(hr=block), single=True)
    StartTcpServer(context, address=("127.0.0.1", int(sys.argv[1])))


if __name__ == "__main__":
    main()
