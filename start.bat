@echo off
rem Starts the trainer, the captioner, both or the demo; installs first where needed. start.bat --help tells more.
setlocal
call "%~dp0install.bat" --if-needed
if errorlevel 1 (
    pause
    exit /b 1
)
if "%~1"=="" goto menu
"%~dp0env\Scripts\python.exe" "%~dp0launch.py" %*
exit /b %errorlevel%

:menu
echo 1  Trainer
echo 2  Captioner
echo 3  Both
echo 4  Demo: the whole job on generated songs, in two minutes
set "choice=1"
set /p "choice=Start which? [1] "
set "mode="
if "%choice%"=="1" set "mode=train"
if "%choice%"=="2" set "mode=caption"
if "%choice%"=="3" set "mode=both"
if "%choice%"=="4" set "mode=demo"
if not defined mode (
    echo Please answer 1, 2, 3 or 4.
    pause
    exit /b 1
)
"%~dp0env\Scripts\python.exe" "%~dp0launch.py" --mode %mode%
set "code=%errorlevel%"
pause
exit /b %code%
