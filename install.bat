@echo off
rem Makes env\ with everything the project needs, or repairs it. Safe to run at any time, also after an interruption.
rem   install.bat              look at everything by importing it; install what is missing
rem   install.bat --if-needed  install only if env\ is not complete or requirements.txt has changed
setlocal
cd /d "%~dp0"
set "env_python=env\Scripts\python.exe"
set "stamp=env\complete"
set "uv="
where uv >nul 2>&1 && set "uv=yes"
if defined PIP_FIND_LINKS if not defined UV_FIND_LINKS set "UV_FIND_LINKS=%PIP_FIND_LINKS: =,%"
for /f "delims=" %%t in ('findstr /b "torch==" requirements.txt') do set "torch=%%t"

call :is_complete
if errorlevel 1 goto install
if "%~1"=="--if-needed" exit /b 0
"%env_python%" -m acestep.core.health
if errorlevel 1 goto install
echo env\ is complete.
exit /b 0

:install
echo Installing into env\. The first time this takes some minutes.
if exist "%stamp%" del "%stamp%"
call :has_pip
if errorlevel 1 call :make_env
if errorlevel 1 exit /b 1
call :install_packages
if errorlevel 1 exit /b 1
"%env_python%" -m acestep.core.health
if not errorlevel 1 goto mark
echo env\ is damaged; making it anew.
call :make_env
if errorlevel 1 exit /b 1
call :install_packages
if errorlevel 1 exit /b 1
"%env_python%" -m acestep.core.health
if errorlevel 1 (
    echo The installation is not complete ^(see above^).
    exit /b 1
)
:mark
call :write_wanted
move /y env\wanted "%stamp%" >nul
echo env\ is complete.
exit /b 0

rem What a complete env\ was made for. The place counts too: the programs in env\Scripts name it.
:write_wanted
(cd & type requirements.txt) >env\wanted
exit /b 0

:is_complete
if not exist "%env_python%" exit /b 1
if not exist "%stamp%" exit /b 1
call :write_wanted
fc /b env\wanted "%stamp%" >nul 2>&1
exit /b %errorlevel%

:has_pip
if not exist "%env_python%" exit /b 1
"%env_python%" -m pip --version >nul 2>&1
exit /b %errorlevel%

:make_env
if exist env rmdir /s /q env
set "python="
rem torch is built for Python 3.11 to 3.14; "py -3" is the newest there is
for %%p in ("py -3" "py -3.13" "py -3.12" "py -3.14" "py -3.11" python python3) do if not defined python (
    %%~p -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))" >nul 2>&1 && set "python=%%~p"
)
if not defined uv goto venv
rem uv takes a Python of the right age from this machine or fetches one
uv venv --seed --python ">=3.11,<3.15" env && exit /b 0
echo uv could not make env\ (see above); going on with Python's own venv.
if exist env rmdir /s /q env
:venv
if not defined python (
    echo Python 3.11 to 3.14 was not found. Install Python 3.13 from python.org and run install.bat again.
    exit /b 1
)
%python% -m venv env && exit /b 0
echo Python cannot make env\ (see above).
exit /b 1

:install_packages
call :install_torch
if errorlevel 1 goto install_failed
call :pip_install -r requirements.txt
if errorlevel 1 goto install_failed
call :pip_install --no-deps -e .
if errorlevel 1 goto install_failed
exit /b 0
:install_failed
echo The packages could not be installed (see above). Check the network and run install.bat again.
exit /b 1

rem uv if it is there, else pip; pip as well where uv fails.
:pip_install
if not defined uv goto pip_only
uv pip install --python "%env_python%" %* && exit /b 0
echo uv failed (see above); going on with pip.
:pip_only
"%env_python%" -m pip install %*
exit /b %errorlevel%

rem PyPI's build of torch for Windows knows no graphics cards, so uv is fetched into env\ where it is not installed.
:install_torch
set "backend=auto"
set "old_card="
set "young_card="
for /f "tokens=1,2 delims=." %%a in ('nvidia-smi "--query-gpu=compute_cap" "--format=csv,noheader" 2^>nul') do call :note_card %%a %%b
if defined old_card if not defined young_card set "backend=cu126"
if "%CI%"=="true" set "backend=cpu"
if defined uv (
    uv pip install --python "%env_python%" --torch-backend=%backend% %torch% && exit /b 0
) else (
    "%env_python%" -m pip install --quiet uv && "%env_python%" -m uv pip install --python "%env_python%" --torch-backend=%backend% %torch% && exit /b 0
)
echo uv could not install torch (see above); going on with pip, whose build computes on the processor only.
"%env_python%" -m pip install %torch%
exit /b %errorlevel%

rem Builds of torch for CUDA 13 hold no code for cards before Turing (capability 7.5).
:note_card
set "age=young"
for %%m in (3 5 6) do if "%~1"=="%%m" set "age=old"
if "%~1"=="7" if "%~2" lss "5" set "age=old"
set "%age%_card=yes"
exit /b 0
